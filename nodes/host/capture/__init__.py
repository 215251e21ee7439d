"""Capturing activations in a sampling run of the model."""

from .arrival import arriving_shares
from .error import CaptureError
from .layer_sweep import SweptModel, some, sweep_layers
from .memory import remembered_capture, remembered_shares
from .run import capture, capture_both
from .sampling import SAMPLERS, SCHEDULERS

__all__ = [
    "SAMPLERS",
    "SCHEDULERS",
    "CaptureError",
    "SweptModel",
    "arriving_shares",
    "capture",
    "capture_both",
    "remembered_capture",
    "remembered_shares",
    "some",
    "sweep_layers",
]
