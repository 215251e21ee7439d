"""A fit report as ComfyUI passes it on."""

from typing import Any

from torch import Tensor

from ..pure_core.report import FitReport, draw, panel
from .host.pictures import to_image


def pictured(report: FitReport) -> Tensor:
    """For an IMAGE output."""
    return to_image(draw(report))


def shown(report: FitReport) -> dict[str, Any]:
    """For the panel that the editor draws on the node."""
    return {"pure_report": [panel(report)]}
