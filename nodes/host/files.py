"""The folder models/erasers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths

from ...pure_core.eraser import Eraser
from ...pure_core.eraser_file import load_eraser, save_eraser
from ...pure_core.errors import EraserFileError

FOLDER = "erasers"
SUFFIX = ".safetensors"


def register_folder() -> None:
    """Make models/erasers known to ComfyUI, beside any folder the person configured for it."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    _, extensions = folder_paths.folder_names_and_paths[FOLDER]
    extensions.add(SUFFIX)


def eraser_names() -> list[str]:
    """The files in models/erasers, with their subfolders."""
    return folder_paths.get_filename_list(FOLDER)


def find(name: str) -> Path:
    """The path of a file in models/erasers.

    Raises:
        EraserFileError: there is none of that name.
    """
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise EraserFileError(
            f"eraser_name: expected a file in models/{FOLDER}, found no '{name}'. Reload the "
            "node list if it was added or renamed."
        )
    return Path(path)


def load(name: str) -> Eraser:
    """Read an eraser from models/erasers.

    Raises:
        EraserFileError: missing, damaged or not an eraser.
    """
    path = find(name)
    try:
        return load_eraser(path)
    except EraserFileError as error:
        raise EraserFileError(f"eraser_name: {error}") from error


def content_hash(name: str) -> str:
    """sha256 of the file, so that a file saved again under its name is read again."""
    return hashlib.sha256(find(name).read_bytes()).hexdigest()


def save(eraser: Eraser, filename_prefix: str) -> Path:
    """Write to models/erasers/<prefix>_00001_.safetensors, counting up; never overwrites.

    The prefix may name subfolders and hold ComfyUI's %date% style fields.

    Raises:
        EraserFileError: the prefix is empty or leads out of models/erasers.
    """
    root = Path(folder_paths.get_folder_paths(FOLDER)[0])
    path = numbered(root, f"models/{FOLDER}", filename_prefix, SUFFIX)
    save_eraser(eraser, path)
    return path


def numbered(root: Path, where: str, filename_prefix: str, suffix: str) -> Path:
    """A free path `<root>/<prefix>_00001_<suffix>`, counting up; its folder exists afterwards.

    Args:
        where: What people call the root.

    Raises:
        EraserFileError: the prefix is empty or leads out of the root.
    """
    root = root.resolve()
    prefix = filename_prefix.strip().replace("\\", "/")
    name = prefix.rpartition("/")[2]
    inside = (root / prefix).resolve()
    if name in ("", ".", "..") or not inside.is_relative_to(root) or inside == root:
        raise EraserFileError(
            f"filename_prefix: expected a name inside {where}, for example 'concepts/"
            f"triangle', got '{filename_prefix}'."
        )
    folder, stem, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    return Path(folder) / f"{stem}_{counter:05}_{suffix}"
