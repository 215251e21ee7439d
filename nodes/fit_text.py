"""PURE_FitText: the methods that work on the prompt's vectors, without sampling anything."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..pure_core.anchors import SLOT, Anchor, AnchorSet
from ..pure_core.concepts import PromptError, lines
from ..pure_core.errors import require_one_of
from ..pure_core.fitting import fit_text
from ..pure_core.methods import TEXT_METHODS
from ..pure_core.report import summary
from .defaults import TEXT_METHOD
from .host.progress import progress
from .host.text import text_task
from .settings import AS_SET, chosen_settings, methods_tooltip, preset_input, setting_inputs
from .types import (
    STEPS,
    Eraser,
    anchors_input,
    clip_input,
    given_anchors,
    max_rank_input,
    model_input,
    optional,
    schema,
)

LATER = ("token ridge", "trce", "calibrated tokens")
"""Methods whose settings were added behind the others: saved workflows hold widgets by place."""

FIRST = tuple(name for name in TEXT_METHODS if name not in LATER)


class FitText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
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
                "trce",
                "calibrated tokens",
                "token ridge",
                "closed-form editing",
            ],
            description=(
                "Fits an eraser from the prompts' encodings alone, by calibrated tokens or one of "
                "the published methods that PURE is compared with. Samples nothing: takes "
                "seconds, for speed and oce minutes at the size of SDXL. The eraser goes wherever "
                "those of PURE Fit go."
            ),
            inputs=[
                model_input(),
                clip_input(),
                anchors_input(
                    "forget",
                    "The concept's prompts: connect forget of PURE Concept, or type some, one a "
                    "line, an empty line between concepts. Most methods edit the last word's "
                    "token, trce the end of the prompt, calibrated tokens and token ridge all of "
                    "its words.",
                ),
                anchors_input(
                    "retain",
                    "What to keep: connect retain of PURE Concept, or type prompts, one a line. "
                    "May be empty; calibrated tokens, token ridge, speed and oce need some.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(TEXT_METHODS),
                    default=TEXT_METHOD,
                    tooltip=methods_tooltip(TEXT_METHODS),
                ),
                optional(
                    io.String.Input(
                        "anchor",
                        default="",
                        multiline=True,
                        tooltip=(
                            "What the concept becomes, for example 'art' or 'a creature': one line "
                            "for all prompts, or a line for each. Empty: the empty prompt, and "
                            "for calibrated tokens and token ridge the neighbours. For these two "
                            "one line is put into the phrasings of PURE Concept. cure has no "
                            "anchor."
                        ),
                    )
                ),
                preset_input(TEXT_METHODS),
                *setting_inputs({name: TEXT_METHODS[name] for name in FIRST}),
                max_rank_input(),
                *(each for name in LATER for each in setting_inputs({name: TEXT_METHODS[name]})),
            ],
            outputs=[
                Eraser.Output(display_name="eraser"),
                io.String.Output(display_name="summary", tooltip="What was fitted, in words."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        forget: AnchorSet | str,
        retain: AnchorSet | str,
        method: str,
        *,
        anchor: str = "",
        preset: str = AS_SET,
        max_rank: int = 0,
        **settings: float | str,
    ) -> io.NodeOutput:
        require_one_of("method", method, TEXT_METHODS)
        chosen = TEXT_METHODS[method]
        values = chosen_settings(chosen, preset, settings)
        concepts = given_anchors(forget)
        if not concepts:
            raise PromptError("forget: expected at least one prompt, got none.")
        become = _replacements(lines(anchor), concepts, chosen.every_token)
        kept = given_anchors(retain)
        task = text_task(model, clip, concepts, kept, become, chosen.captions)
        eraser = fit_text(method, task, progress(), **values)
        if max_rank:
            eraser = eraser.limited(max_rank)
        return io.NodeOutput(eraser, summary(eraser))


def _replacements(anchor: Sequence[str], concepts: AnchorSet, every_token: bool) -> Sequence[str]:
    """Prompts that the concepts' prompts become.

    A method that edits every token gets a single name in the phrasing of each prompt that has one.
    """
    if len(anchor) != 1 or not every_token:
        return anchor
    (name,) = anchor
    return [Anchor.phrased(name, each.phrasing or SLOT).prompt for each in concepts]
