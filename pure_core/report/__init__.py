"""What an eraser does to the activations it was fitted on: numbers, a picture, a panel's data."""

from .numbers import FitReport, LayerReport, summary
from .panel import panel
from .picture import draw

__all__ = ["FitReport", "LayerReport", "draw", "panel", "summary"]
