"""Sockets and widgets that several nodes share."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from comfy_api.latest import io

from ..pure_core.anchors import AnchorSet
from ..pure_core.concepts import KINDS, PLAIN_REPLACEMENT, written_anchors
from ..pure_core.families import known_models
from ..pure_core.fitting import AS_METHOD, HEADS
from ..pure_core.methods import METHODS
from ..pure_core.trajectory import Trajectory
from .defaults import METHOD, STRENGTH
from .host.capture import SAMPLERS, SCHEDULERS
from .host.patch import CHOICES, SHARED_CHOICES
from .settings import methods_tooltip

CATEGORY = "PURE"
STEPS = f"{CATEGORY}/steps"
FILES = f"{CATEGORY}/files"
EXPORT = f"{CATEGORY}/export"

MAX_SEED = 0xFFFFFFFFFFFFFFFF
MAX_STRENGTH = 5.0
PIXEL_STEP = 8
MAX_SOCKETS = 8

# Outputs get a display_name and no id: 0.3.75 refuses an output with the id of an input.
Anchors = io.Custom("PURE_ANCHORS")
Activations = io.Custom("PURE_ACTIVATIONS")
Eraser = io.Custom("PURE_ERASER")

Widget = TypeVar("Widget", bound=io.Input)


def schema(*, search_aliases: list[str], **fields: Any) -> io.Schema:
    """A node's schema, found by other words, too, where ComfyUI has a search for them."""
    made = io.Schema(**fields)
    if hasattr(made, "search_aliases"):  # not in 0.3.75
        made.search_aliases = search_aliases
    return made


def advanced(widget: Widget) -> Widget:
    """Mark an input as advanced: the editor folds it away.

    ComfyUI 0.3.75 has no keyword for it, but passes on what is in `extra_dict`.
    """
    widget.extra_dict["advanced"] = True
    return widget


def optional(widget: Widget) -> Widget:
    """The same input, which may be left out of a workflow."""
    widget.optional = True
    return widget


def model_input() -> io.Model.Input:
    return io.Model.Input(
        "model", tooltip=f"The model, after all its LoRAs. Supported: {known_models()}."
    )


def clip_input() -> io.Clip.Input:
    return io.Clip.Input("clip", tooltip="The text encoder that belongs to the model.")


def measuring_inputs() -> tuple[io.Input, io.Input]:
    """Model and text encoder where they serve only to measure what arrives of a change."""
    why = "Only needed to measure how much of the change arrives."
    return (
        optional(io.Model.Input("model", tooltip=f"The model, after all its LoRAs. {why}")),
        optional(io.Clip.Input("clip", tooltip=f"The model's text encoder. {why}")),
    )


def concept_input() -> io.String.Input:
    return io.String.Input(
        "concept",
        default="",
        multiline=True,
        tooltip=(
            "What to erase, as a prompt would name it, for example: Van Gogh. Not a sentence. "
            "Several of one kind: one a line, or on one line with semicolons or two or more "
            "commas between them; all are erased together, and the neighbours are captured once. "
            "Lines that begin with # are left out."
        ),
    )


def kind_input() -> io.Combo.Input:
    return io.Combo.Input(
        "kind",
        options=list(KINDS),
        default=KINDS[0],
        tooltip=(
            "What the concept is. It chooses the phrasings: six for every kind ('a photo of ...', "
            "'a painting by ...'); custom has one, the bare name, for your own templates. For a "
            "painter choose style; person erases what somebody looks like."
        ),
    )


def neighbours_input() -> io.String.Input:
    return io.String.Input(
        "neighbours",
        default="",
        multiline=True,
        tooltip=(
            "What to keep: other concepts of the same kind, one a line, or on a single line with "
            "commas between them. About nine are good, the "
            "most similar ones (for one painter: other painters; for unsafe content: harmless "
            "things that look similar). Without neighbours PURE also removes what the concept "
            "shares with everything else and damages the model; the other methods cannot be "
            f"fitted without them, or only with a replacement ({replaceable()})."
        ),
    )


def templates_input() -> io.String.Input:
    return io.String.Input(
        "templates",
        default="",
        multiline=True,
        optional=True,
        tooltip=(
            "Your own phrasings instead of the kind's, one a line, with {} where the concept goes. "
            "Empty: those of the kind."
        ),
    )


def replacement_input() -> io.String.Input:
    """What the concept becomes, where a person names it."""
    plain = " and ".join(f"'{name}' for {kind}" for kind, name in PLAIN_REPLACEMENT.items())
    return io.String.Input(
        "replacement",
        default="",
        optional=True,
        tooltip=(
            "What the concept becomes: one name, for example another character. All concepts to "
            "erase become it, and it is kept; it may be among the neighbours, too. Empty: the "
            f"concept becomes what its neighbours have in common, and without neighbours {plain}. "
            f"Only {replaceable()} can do it; with it they also work without neighbours."
        ),
    )


def replaceable() -> str:
    """The methods that can send a concept to a replacement, in words."""
    return " and ".join(name for name, each in METHODS.items() if each.has_target)


def trajectory_inputs() -> list[io.Input]:
    """One input per field of `Trajectory` in its order, but for the cells and the length."""
    default = Trajectory()
    return [
        io.Int.Input(
            "steps",
            default=default.steps,
            min=1,
            max=1000,
            step=1,
            tooltip="Length of the sampling schedule, 1 to 1000 steps.",
        ),
        io.Int.Input(
            "run_steps",
            default=default.run_steps,
            min=1,
            max=1000,
            step=1,
            tooltip=(
                "How many of the steps are run and captured, from the noisy end, 1 to steps. The "
                "first few decide what the picture shows."
            ),
        ),
        io.Int.Input(
            "latents",
            default=default.latents,
            min=1,
            max=64,
            step=1,
            tooltip=(
                "Starting noises per prompt, 1 to 64. Every prompt gets the same ones. More "
                "measure better and take longer."
            ),
        ),
        io.Float.Input(
            "cfg",
            default=default.cfg,
            min=1.0,
            max=30.0,
            step=0.1,
            tooltip=(
                "Guidance scale of the trajectory, 1 to 30, against the empty prompt. Only the "
                "prompted half is captured. At 1 the other half is not run: twice as fast."
            ),
        ),
        io.Int.Input(
            "seed",
            default=default.seed,
            min=0,
            max=MAX_SEED,
            step=1,
            control_after_generate=False,
            tooltip="Seed of the starting noises. Use one for forget and retain.",
        ),
        *(
            io.Int.Input(
                name,
                default=getattr(default, name),
                min=0,
                max=4096,
                step=PIXEL_STEP,
                tooltip=(
                    f"Picture {name} in pixels, a multiple of {PIXEL_STEP} (of 16 or 32 for "
                    "transformers), up to 4096. 0: the model's usual size, 512 for SD 1.5, 1024 "
                    "for SDXL. Somewhat less is faster."
                ),
            )
            for name in ("width", "height")
        ),
        io.Combo.Input(
            "sampler_name",
            options=list(SAMPLERS),
            default=default.sampler_name,
            tooltip=(
                "Sampler of the trajectory. One row is captured per step, when the model is called "
                "for the first time at the step's noise level. Some samplers, such as heun, call "
                "it twice in a step and look ahead to the next level: then the row of that level "
                "is what they saw looking ahead. Samplers that choose their own steps are not "
                "offered."
            ),
        ),
        io.Combo.Input(
            "scheduler",
            options=list(SCHEDULERS),
            default=default.scheduler,
            tooltip="How noise levels are spaced over the steps.",
        ),
    ]


PICTURE_TOOLTIPS = {
    "steps": "Sampling steps of every picture, 1 to 1000. All are run.",
    "cfg": (
        "Guidance scale, 1 to 30, against the empty prompt. At 1 it is not run: twice as fast."
    ),
    "seed": "Seed of the starting noises: every prompt has its own, the same in every run.",
    "sampler_name": "Sampler of the pictures. Those that choose their own steps are not offered.",
}
"""Of those inputs that mean something else where whole pictures are sampled."""


def picture_inputs() -> list[io.Input]:
    """The inputs of a trajectory that a finished picture needs, from one noise a prompt."""
    inputs = [each for each in trajectory_inputs() if each.id not in ("run_steps", "latents")]
    for each in inputs:
        each.tooltip = PICTURE_TOOLTIPS.get(each.id, each.tooltip)
    return inputs


def cells_input() -> io.Int.Input:
    return advanced(
        optional(
            io.Int.Input(
                "cells",
                default=Trajectory().cells,
                min=1,
                max=16,
                step=1,
                tooltip=(
                    "Activations are averaged over each cell of a grid with this many rows and "
                    "columns, 1 to 16. 1 is the whole picture, which pure, ridge and leace use. "
                    "mosaic is best with 4; memory grows with the square."
                ),
            )
        )
    )


def length_input() -> io.Int.Input:
    return advanced(
        optional(
            io.Int.Input(
                "length",
                default=Trajectory().length,
                min=1,
                max=257,
                step=1,
                tooltip=(
                    "Frames of the clip that is sampled, for models that make videos; 1 to 257. 1, "
                    "the default, is a single picture and suits all models. More cost as much more "
                    "time: one frame more than a multiple of 4 (Wan, Cosmos-Predict2, Kandinsky 5) "
                    "or of 8 (Cosmos 1, LTX-Video). Activations are averaged over the frames."
                ),
            )
        )
    )


def max_rank_input(default: int = 0) -> io.Int.Input:
    """How many directions an eraser may have in a layer; 0 where it is to be joined later."""
    return advanced(
        optional(
            io.Int.Input(
                "max_rank",
                default=default,
                min=0,
                max=4096,
                step=1,
                tooltip=(
                    "The most directions that are changed in each layer, or in each head of one "
                    "that is fitted head by head: those in which the concept changes most; 1 to "
                    "4096, 0 for all of them. Fewer make smaller files and LoRAs; with ten "
                    "concepts at once, 64 lost nothing. Erasers that you want to join later need 0."
                ),
            )
        )
    )


def heads_input() -> io.Combo.Input:
    """Whether each head of a layer is fitted by itself."""
    alone = [name for name, each in METHODS.items() if each.by_head_up_to == math.inf]
    single = [name for name, each in METHODS.items() if each.by_head_up_to == 1]
    return advanced(
        optional(
            io.Combo.Input(
                "heads",
                options=list(HEADS),
                default=AS_METHOD,
                tooltip=(
                    "The heads of a layer pay attention to different words. Fitted each by "
                    "itself, all of the change arrives in the model, and files are smaller. "
                    "Fitted all together, one head may use what another says, as in the paper, "
                    "but part of the change does not arrive; connect model and clip, and the "
                    f"report says how much does. Each by itself by default: {', '.join(alone)}; of "
                    f"a single concept {' and '.join(single)}."
                ),
            )
        )
    )


def strength_input(multiplies: bool = True) -> io.Float.Input:
    more = " Multiplies the strength that the eraser already has." if multiplies else ""
    return io.Float.Input(
        "strength",
        default=STRENGTH,
        min=-MAX_STRENGTH,
        max=MAX_STRENGTH,
        step=0.05,
        tooltip=(
            f"How far to go, {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}. 1 erases as fitted, 0 leaves "
            f"the model exactly as it is, below 0 amplifies the concept.{more}"
        ),
    )


def eraser_input(more: str = "") -> io.Input:
    return Eraser.Input(
        "eraser",
        tooltip=(
            "From PURE Fit, PURE Fit Text, PURE Erase Concept, PURE Combine Erasers or PURE Load "
            f"Eraser.{more}"
        ),
    )


def numbered_inputs(kind: Any, name: str, tooltip: str) -> list[io.Input]:
    """Sockets name_1 to name_8, the first required. A list may be connected to each."""
    return [
        kind.Input(f"{name}_{number}", optional=number > 1, tooltip=tooltip)
        for number in range(1, MAX_SOCKETS + 1)
    ]


def in_order(given: Mapping[str, list[Any] | None]) -> list[Any]:
    """What came in at numbered sockets, by their number."""
    names = sorted(given, key=lambda name: int(name.rpartition("_")[2]))
    return [each for name in names for each in given[name] or [] if each is not None]


def edit_input() -> io.Combo.Input:
    return io.Combo.Input(
        "edit",
        options=list(CHOICES),
        default=CHOICES[0],
        tooltip=(
            "Which weights are changed. As fitted: what the eraser says, from its method keys and "
            "values for pure (values where the model normalises keys), values for ridge and "
            "mosaic. Values alone change what is painted and not where the model looks; keys alone "
            "do nearly nothing."
        ),
    )


def shared_input() -> io.Combo.Input:
    return io.Combo.Input(
        "shared",
        options=list(SHARED_CHOICES),
        default=SHARED_CHOICES[0],
        optional=True,
        tooltip=(
            "What to do in layers in which text and picture share their weights, such as those of "
            "Z-Image or the single blocks of Flux. While sampling (usual): only what the text says "
            "is erased, which costs a little time and cannot be exported. In the weights: edited "
            "for both, can be exported. Left alone: not erased there."
        ),
    )


def method_input() -> io.Combo.Input:
    return io.Combo.Input(
        "method",
        options=list(METHODS),
        default=METHOD,
        tooltip=methods_tooltip(
            METHODS,
            "The default is the quicker of the two that measured best on the small models shipped "
            "for tests; choose pure for the paper's method.",
        ),
    )


def anchors_input(name: str, tooltip: str) -> io.Input:
    """Anchors from PURE Concept, or prompts that a person types."""
    return io.MultiType.Input(
        io.String.Input(name, default="", multiline=True, tooltip=tooltip), types=[Anchors]
    )


def given_anchors(prompts: AnchorSet | str) -> AnchorSet:
    """What came in at an `anchors_input`."""
    return written_anchors(prompts) if isinstance(prompts, str) else prompts
