"""The graph's nodes: one file per thing a person does."""

from comfy_api.latest import ComfyExtension, io

from .capture import Capture
from .combine import CombineErasers, ConcatenateActivations
from .compare import Compare
from .concept import Concept
from .erase import EraseConcept
from .export import SaveCheckpoint, SaveDiffusers, SaveLoRA
from .files import LoadActivations, LoadEraser, SaveActivations, SaveEraser
from .fit import Fit
from .fit_text import FitText
from .host.served import warn_if_not_served
from .layer_sweep import LayerSweep
from .patch import Patch


class PureExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            EraseConcept,
            Concept,
            Capture,
            Fit,
            FitText,
            Patch,
            LayerSweep,
            CombineErasers,
            ConcatenateActivations,
            SaveEraser,
            LoadEraser,
            SaveActivations,
            LoadActivations,
            SaveCheckpoint,
            SaveLoRA,
            SaveDiffusers,
            Compare,
        ]


async def comfy_entrypoint() -> PureExtension:
    warn_if_not_served()
    return PureExtension()
