"""What can go wrong while capturing."""

from ....pure_core.errors import PureError


class CaptureError(PureError):
    """The activations could not be captured as asked."""
