"""The folders models/erasers and models/activations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

from ...pure_core.activations import Activations
from ...pure_core.eraser import Eraser
from ...pure_core.errors import (
    ActivationFileError,
    EraserFileError,
    FileNameError,
    FolderError,
    PureError,
)
from ...pure_core.files.activations import load_activations, save_activations
from ...pure_core.files.atomic import require_usable, why_not_written
from ...pure_core.files.eraser import load_eraser, save_eraser

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Folder:
    """A folder in models/ for one kind of our files."""

    name: str
    widget: str
    """The input in which a person chooses a file."""

    error: type[PureError]
    read: Callable[[Path], Any]
    """Gives what a file holds, or raises `error`."""

    write: Callable[..., None]
    """Writes it: see `save_eraser`."""

    def register(self) -> None:
        """Make it known to ComfyUI, beside any folder the person configured under that name."""
        folder_paths.add_model_folder_path(
            self.name, str(Path(folder_paths.models_dir) / self.name)
        )
        _, extensions = folder_paths.folder_names_and_paths[self.name]
        extensions.add(SUFFIX)

    def names(self) -> list[str]:
        """The files in it, with their subfolders."""
        found: list[str] = folder_paths.get_filename_list(self.name)
        return found

    def find(self, name: str) -> Path:
        """The path of a file in it. Raises `error` if there is none of that name."""
        path = folder_paths.get_full_path(self.name, name)
        if path is None:
            raise self.error(
                f"{self.widget}: expected a file in models/{self.name}, found no '{name}'. Reload "
                "the node list if it was added or renamed."
            )
        return Path(path)

    def load(self, name: str) -> Any:
        """Read a file. Raises `error` if it is missing, damaged or of another kind."""
        path = self.find(name)
        try:
            return self.read(path)
        except self.error as error:
            raise self.error(f"{self.widget}: {error}") from error

    def state_of(self, name: str) -> str:
        """Changes when the file does, so that one saved again under its name is read again."""
        return state(self.find(name))

    def save(self, content: Eraser | Activations, filename_prefix: str) -> Path:
        """Write to <prefix>_00001_.safetensors in it, counting up; never overwrites.

        The prefix may name subfolders and hold ComfyUI's %date% style fields.

        Raises:
            FileNameError: as `numbered` does.
            FolderError: the folder cannot be made or written to.
            self.error: the file cannot be written.
        """
        root = Path(folder_paths.get_folder_paths(self.name)[0])
        path = numbered(root, f"models/{self.name}", filename_prefix, SUFFIX)
        self.write(content, path, prompts=with_prompts())
        return path


ERASERS = Folder("erasers", "eraser_name", EraserFileError, load_eraser, save_eraser)
ACTIVATIONS = Folder(
    "activations", "activations_name", ActivationFileError, load_activations, save_activations
)


def with_prompts() -> bool:
    """Whether prompts may be written into files: ComfyUI was started without --disable-metadata."""
    return not args.disable_metadata


def state(path: Path) -> str:
    """Another one for every version of a file."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def numbered(root: Path, where: str, filename_prefix: str, suffix: str) -> Path:
    """A free path `<root>/<prefix>_00001_<suffix>`, counting up; its folder exists afterwards.

    Args:
        where: What people call the root.

    Raises:
        FileNameError: the prefix is empty, leads out of the root, or is no name for a file.
        FolderError: the folder cannot be made or read.
    """
    prefix = filename_prefix.strip().replace("\\", "/")
    name = prefix.rpartition("/")[2]
    try:
        root = root.resolve()
        inside = (root / prefix).resolve()
        *folders, _ = prefix.split("/")
        for part in folders:
            with suppress(FileNotFoundError, NotADirectoryError):
                (root / part).lstat()
        require_usable(root / f"{name}_00001_{suffix}")
    except (OSError, ValueError) as error:
        raise FileNameError(
            f"filename_prefix: expected a name that a file can have inside {where}, got "
            f"{shorten(repr(filename_prefix))}, which the file system refuses ({reason(error)}). "
            "Choose a short name without control characters."
        ) from error
    if name in ("", ".", "..") or not inside.is_relative_to(root) or inside == root:
        raise FileNameError(
            f"filename_prefix: expected a name inside {where}, for example 'concepts/"
            f"triangle', got '{filename_prefix}'."
        )
    try:
        folder, stem, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    except OSError as error:
        raise FolderError(
            f"Nothing was written to {where}: {why_not_written(inside, error)}"
        ) from error
    return Path(folder) / f"{stem}_{counter:05}_{suffix}"


def shorten(text: str) -> str:
    """Text for a message, with its middle left out if it is long."""
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def reason(error: OSError | ValueError) -> str:
    """What the system says."""
    return getattr(error, "strerror", None) or str(error)
