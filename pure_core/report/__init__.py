"""What an eraser does to the activations it was fitted on, in numbers and as a picture."""

from .numbers import FitReport, LayerReport, summary
from .picture import draw

__all__ = ["FitReport", "LayerReport", "draw", "summary"]
