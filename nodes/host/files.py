"""The folders models/erasers and models/activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import folder_paths

from ...pure_core.activations import Activations
from ...pure_core.eraser import Eraser
from ...pure_core.errors import ActivationFileError, EraserFileError, FileNameError, PureError
from ...pure_core.files.activations import load_activations, save_activations
from ...pure_core.files.eraser import load_eraser, save_eraser

SUFFIX = ".safetensors"

Thing = TypeVar("Thing", Eraser, Activations)


@dataclass(frozen=True)
class Folder(Generic[Thing]):
    """A folder in models/ for one kind of our files."""

    name: str
    widget: str
    """The input in which a person chooses a file."""

    error: type[PureError]
    read: Callable[[Path], Thing]
    write: Callable[[Thing, Path], None]

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

    def load(self, name: str) -> Thing:
        """Read a file. Raises `error` if it is missing, damaged or of another kind."""
        path = self.find(name)
        try:
            return self.read(path)
        except self.error as error:
            raise self.error(f"{self.widget}: {error}") from error

    def state_of(self, name: str) -> str:
        """Changes when the file does, so that one saved again under its name is read again."""
        return state(self.find(name))

    def save(self, thing: Thing, filename_prefix: str) -> Path:
        """Write to <prefix>_00001_.safetensors in it, counting up; never overwrites.

        The prefix may name subfolders and hold ComfyUI's %date% style fields.

        Raises:
            FileNameError: the prefix is empty or leads out of the folder.
        """
        root = Path(folder_paths.get_folder_paths(self.name)[0])
        path = numbered(root, f"models/{self.name}", filename_prefix, SUFFIX)
        self.write(thing, path)
        return path


ERASERS: Folder[Eraser] = Folder(
    "erasers", "eraser_name", EraserFileError, load_eraser, save_eraser
)
ACTIVATIONS: Folder[Activations] = Folder(
    "activations", "activations_name", ActivationFileError, load_activations, save_activations
)


def state(path: Path) -> str:
    """Another one for every version of a file."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def numbered(root: Path, where: str, filename_prefix: str, suffix: str) -> Path:
    """A free path `<root>/<prefix>_00001_<suffix>`, counting up; its folder exists afterwards.

    Args:
        where: What people call the root.

    Raises:
        FileNameError: the prefix is empty or leads out of the root.
    """
    root = root.resolve()
    prefix = filename_prefix.strip().replace("\\", "/")
    name = prefix.rpartition("/")[2]
    inside = (root / prefix).resolve()
    if name in ("", ".", "..") or not inside.is_relative_to(root) or inside == root:
        raise FileNameError(
            f"filename_prefix: expected a name inside {where}, for example 'concepts/"
            f"triangle', got '{filename_prefix}'."
        )
    folder, stem, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    return Path(folder) / f"{stem}_{counter:05}_{suffix}"
