"""Errors meant for the person at the graph: what was expected, what came, what to do."""

from collections.abc import Iterable


class PureError(ValueError):
    """Base of every error that user input can cause."""


class ActivationError(PureError):
    """Captured rows are missing, doubled, misshapen or not finite."""


class FitError(PureError):
    """The activations or settings given to a method do not fit together."""


class EraserError(PureError):
    """An eraser does not fit what it is applied to or combined with."""


class EraserFileError(PureError):
    """A file is not an eraser this version can read, or cannot be written."""


class ActivationFileError(PureError):
    """A file holds no activations this version can read, or cannot be written."""


class FileNameError(PureError):
    """A name given for a file leads nowhere or out of its folder."""


class FolderError(PureError):
    """A folder that files are to go to cannot be made, read or written to."""


class ModelFileError(PureError):
    """A checkpoint, U-Net or LoRA file cannot be read, edited or written as asked."""


def require_one_of(
    name: str, choice: str, options: Iterable[str], error: type[PureError] = PureError
) -> None:
    """Raise `error` for what is not an option of the input: ComfyUI 0.3.75 lets it pass."""
    if choice not in (known := list(options)):
        raise error(f"{name}: expected one of {', '.join(known)}, got {choice!r}.")
