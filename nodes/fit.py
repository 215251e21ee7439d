"""PURE_Fit: from activations to an eraser, with a report of what it does."""

from typing import Any

from comfy_api.latest import io

from ..pure_core import activations as core
from ..pure_core.errors import require_one_of
from ..pure_core.fitting import AS_METHOD, fit
from ..pure_core.methods import METHODS
from ..pure_core.report import FitReport
from .host.capture import arriving_shares
from .host.progress import progress
from .report import pictured, shown
from .settings import AS_SET, chosen_settings, preset_input, setting_inputs
from .types import (
    STEPS,
    Activations,
    Eraser,
    heads_input,
    max_rank_input,
    measuring_inputs,
    method_input,
    replaceable,
    schema,
)


class Fit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="PURE_Fit",
            display_name="PURE Fit",
            category=STEPS,
            search_aliases=["projector", "ridge", "mosaic", "leace", "unlearn", "concept erasure"],
            description=(
                "Finds, in every cross-attention layer, the change that removes the concept and "
                "keeps its neighbours. For the paper's method choose pure."
            ),
            inputs=[
                Activations.Input(
                    "forget",
                    tooltip="Activations of the concept's prompts, or of several concepts'.",
                ),
                Activations.Input(
                    "retain",
                    optional=True,
                    tooltip=(
                        "Activations of its neighbours, captured with the same model and settings. "
                        "Without them pure damages everything the concept shares with the rest of "
                        "the world; the other methods cannot be fitted, or only with a replacement."
                    ),
                ),
                method_input(),
                preset_input(METHODS),
                *setting_inputs(METHODS),
                max_rank_input(),
                heads_input(),
                *measuring_inputs(),
                Activations.Input(
                    "replacement",
                    optional=True,
                    tooltip=(
                        "Activations of what the concept becomes: of 'replacement' of PURE "
                        "Concept, captured with the same model and settings. Without it the "
                        f"concept becomes its neighbours. Only for {replaceable()}, which then "
                        "also work without neighbours."
                    ),
                ),
            ],
            outputs=[
                Eraser.Output(display_name="eraser"),
                io.Image.Output(
                    display_name="report",
                    tooltip="Per layer: ranks, spectra, how much is removed and how much kept.",
                ),
                io.String.Output(display_name="summary", tooltip="The report in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        forget: core.Activations,
        method: str,
        retain: core.Activations | None = None,
        preset: str = AS_SET,
        max_rank: int = 0,
        heads: str = AS_METHOD,
        model: Any = None,
        clip: Any = None,
        replacement: core.Activations | None = None,
        **settings: float,
    ) -> io.NodeOutput:
        require_one_of("method", method, METHODS)
        chosen = chosen_settings(METHODS[method], preset, settings)
        eraser = fit(method, forget, retain, progress(), heads, replacement, **chosen)
        if max_rank:
            eraser = eraser.limited(max_rank)
        shares = arriving_shares(model, clip, eraser) if model and clip else {}
        report = FitReport.of(eraser, forget, retain, progress(), shares, replacement)
        return io.NodeOutput(eraser, pictured(report), report.summary(), ui=shown(report))
