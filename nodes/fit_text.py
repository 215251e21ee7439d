"""PURE_FitText: the methods that work on the prompt's vectors, without sampling anything."""

from typing import Any

from comfy_api.latest import io

from ..pure_core.methods.by_text import TEXT_METHODS, fit_text
from ..pure_core.methods.uce import TOKENS
from ..pure_core.report import summary
from .defaults import TEXT_METHOD, TextFitting
from .host.progress import progress
from .host.text import text_task
from .prompts import PromptError, lines, paragraphs
from .types import (
    STEPS,
    Eraser,
    advanced,
    max_rank_input,
    optional,
    schema,
)

STEP = 0.001


def _setting(
    name: str, low: float, high: float, tooltip: str, step: float = STEP
) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=getattr(TextFitting(), name),
        min=low,
        max=high,
        step=step,
        round=STEP,
        tooltip=tooltip,
    )


class FitText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        default = TextFitting()
        return schema(
            node_id="PURE_FitText",
            display_name="PURE Fit Text",
            category=STEPS,
            search_aliases=[
                "uce",
                "rece",
                "cure",
                "speed",
                "oce",
                "double projections",
                "closed-form editing",
            ],
            description=(
                "Fits an eraser from the prompts' encodings alone, by one of the published methods "
                "that PURE is compared with. Samples nothing: takes seconds, for speed and oce "
                "minutes at the size of SDXL. The eraser goes wherever those of PURE Fit go."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Model.Input(
                    "model",
                    tooltip="A U-Net model: SD 1.x, SD 2.x, SDXL and alike, after its LoRAs.",
                ),
                io.String.Input(
                    "forget",
                    default="",
                    multiline=True,
                    tooltip=(
                        "Prompts of the concept, one a line, each ending with its name: most "
                        "methods edit the last word's token. An empty line begins another concept. "
                        "PURE Concept writes them."
                    ),
                ),
                io.String.Input(
                    "retain",
                    default="",
                    multiline=True,
                    tooltip=(
                        "Prompts to keep, one a line, such as PURE Concept writes for neighbours. "
                        "May be empty; speed and oce need some."
                    ),
                ),
                io.Combo.Input(
                    "method",
                    options=list(TEXT_METHODS),
                    default=TEXT_METHOD,
                    tooltip=(
                        "uce: moves tokens to the anchor, least squares. cure: projects token "
                        "directions out. rece: uce, then again for what brings the concept back. "
                        "speed: to the anchor in the null space of what is retained. oce: rotates "
                        "values. double projections: to the anchor's part of the concept."
                    ),
                ),
                optional(
                    io.String.Input(
                        "anchor",
                        default="",
                        multiline=True,
                        tooltip=(
                            "What the concept becomes, for example 'art' or 'a creature': one line "
                            "for all prompts, or a line for each. Empty: the empty prompt. cure "
                            "has no anchor."
                        ),
                    )
                ),
                optional(
                    _setting(
                        "erase",
                        STEP,
                        1000.0,
                        "uce, rece: weight of moving the concept, above 0 to 1000.",
                        0.1,
                    )
                ),
                optional(
                    _setting(
                        "preserve",
                        0.0,
                        1000.0,
                        "uce, rece, oce: weight of keeping the retain prompts, 0 to 1000.",
                        0.1,
                    )
                ),
                optional(
                    _setting(
                        "alpha",
                        1.0,
                        1000.0,
                        "cure: a factor, 1 to 1000, not a number of directions: the higher it is, "
                        "the more of a concept's directions count. 2 is the authors' for objects "
                        "and artists, 5 for unsafe content.",
                        0.1,
                    )
                ),
                advanced(
                    optional(
                        _setting(
                            "ridge",
                            STEP,
                            1000.0,
                            "uce, rece: weight of changing nothing at all, above 0 to 1000. Higher "
                            "is more careful.",
                            0.1,
                        )
                    )
                ),
                advanced(
                    optional(
                        io.Combo.Input(
                            "tokens",
                            options=list(TOKENS),
                            default=default.tokens,
                            tooltip=(
                                "uce, rece: move only the last word's last token, or it and all "
                                "after it, the end and the padding, which carry the concept too."
                            ),
                        )
                    )
                ),
                advanced(
                    optional(
                        io.Int.Input(
                            "rounds",
                            default=default.rounds,
                            min=0,
                            max=100,
                            step=1,
                            tooltip="rece: rounds of erasing what brings it back, 0 to 100.",
                        )
                    )
                ),
                advanced(
                    optional(
                        _setting(
                            "recovery",
                            STEP,
                            100.0,
                            "rece: what keeps the vectors small that bring the concept back, above "
                            "0 to 100.",
                        )
                    )
                ),
                advanced(
                    optional(
                        _setting(
                            "threshold",
                            STEP,
                            100.0,
                            "speed: from which mean squared size a direction of the retained "
                            "prompts is kept exactly, above 0 to 100. Lower keeps more.",
                        )
                    )
                ),
                advanced(
                    optional(
                        _setting(
                            "regularisation",
                            STEP,
                            100.0,
                            "speed: weight of changing nothing at all, above 0 to 100.",
                        )
                    )
                ),
                advanced(
                    optional(
                        _setting(
                            "rotation",
                            STEP,
                            1e6,
                            "oce: weight of turning the concept away, above 0 to 1 000 000.",
                            1.0,
                        )
                    )
                ),
                max_rank_input(),
            ],
            outputs=[
                Eraser.Output(display_name="eraser"),
                io.String.Output(display_name="summary", tooltip="What was fitted, in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        model: Any,
        forget: str,
        retain: str,
        method: str,
        *,
        anchor: str = "",
        max_rank: int = 0,
        **settings: float | str,
    ) -> io.NodeOutput:
        concepts = paragraphs(forget)
        if not concepts:
            raise PromptError("forget: expected at least one prompt, got none.")
        task = text_task(model, clip, concepts, lines(retain), lines(anchor))
        eraser = fit_text(method, task, progress(), **settings)
        if max_rank:
            eraser = eraser.limited(max_rank)
        return io.NodeOutput(eraser, summary(eraser))
