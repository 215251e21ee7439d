"""PURE_Fit: from activations to an eraser, with a report of what it does."""

from comfy_api.latest import io

from ..pure_core import activations as core
from ..pure_core.methods import METHODS, fit
from ..pure_core.report import FitReport
from .defaults import METHOD, Fitting
from .host.progress import progress
from .report import pictured, shown
from .types import (
    STEPS,
    Activations,
    Eraser,
    advanced,
    max_rank_input,
    method_input,
    optional,
    schema,
)

ENERGY_STEP = 0.00001


class Fit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        default = Fitting()
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
                        "the world; the other methods cannot be fitted."
                    ),
                ),
                method_input(list(METHODS), METHOD),
                io.Float.Input(
                    "forget_energy",
                    default=default.forget_energy,
                    min=0.0,
                    max=1.0,
                    step=0.0001,  # the editor shows as many digits as the step has
                    round=ENERGY_STEP,
                    tooltip=(
                        "pure: share of the forget activations' energy (cumulative variance) that "
                        "is projected out, above 0 to 1. Higher removes more directions."
                    ),
                ),
                io.Float.Input(
                    "retain_energy",
                    default=default.retain_energy,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=ENERGY_STEP,
                    tooltip=(
                        "pure: share of the retain activations' energy that is protected, above 0 "
                        "to 1. Where the neighbours' directions contain the concept, a high value "
                        "keeps the concept too: lower it if the report says little is removed."
                    ),
                ),
                io.Float.Input(
                    "keep",
                    default=default.keep,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    round=ENERGY_STEP,
                    tooltip=(
                        "ridge, mosaic: weight of keeping neighbours (lambda), 0 to 1000. Higher "
                        "keeps better and erases less."
                    ),
                ),
                io.Float.Input(
                    "damping",
                    default=default.damping,
                    min=ENERGY_STEP,
                    max=10.0,
                    step=0.01,
                    round=ENERGY_STEP,
                    tooltip=(
                        "ridge, mosaic: weight of changing nothing else (mu), above 0 to 10. Higher"
                        " is more careful with whatever is neither concept nor neighbour."
                    ),
                ),
                advanced(
                    optional(
                        io.Float.Input(
                            "overshoot",
                            default=default.overshoot,
                            min=0.1,
                            max=5.0,
                            step=0.1,
                            round=ENERGY_STEP,
                            tooltip=(
                                "ridge: how far the concept is sent, 0.1 to 5. 1 is the "
                                "neighbours' mean, more goes beyond it and erases what 1 leaves, "
                                "but may push neighbours towards the concept: lower it then."
                            ),
                        )
                    )
                ),
                max_rank_input(),
                advanced(
                    optional(
                        io.Float.Input(
                            "shrinkage",
                            default=default.shrinkage,
                            min=ENERGY_STEP,
                            max=1.0,
                            step=0.001,
                            round=ENERGY_STEP,
                            tooltip=(
                                "leace: share of the activations' covariance that is replaced by "
                                "its mean, above 0 to 1. Higher trusts the measured one less."
                            ),
                        )
                    )
                ),
                advanced(
                    optional(
                        io.Float.Input(
                            "reach",
                            default=default.reach,
                            min=0.0,
                            max=5.0,
                            step=0.05,
                            round=ENERGY_STEP,
                            tooltip=(
                                "mosaic: how far the concept is sent, 0 to 5. 1 is the neighbours' "
                                "mean, more goes beyond it and erases what 1 leaves. 0: 1.6 for "
                                "one concept, less for more of them."
                            ),
                        )
                    )
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
        max_rank: int = 0,
        **settings: float,
    ) -> io.NodeOutput:
        eraser = fit(method, forget, retain, progress(), **settings)
        if max_rank:
            eraser = eraser.limited(max_rank)
        report = FitReport.of(eraser, forget, retain, progress())
        return io.NodeOutput(eraser, pictured(report), report.summary(), ui=shown(report))
