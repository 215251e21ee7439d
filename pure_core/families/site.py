"""What a model family has to say: where its text is read, and how its files name that.

A *site* is an attention in which image queries read text. It has keys and values, which are rows
of linear maps, and an output h, all heads side by side, d = heads x head_dim (PURE, arXiv
2605.25765, section 3). Everything else in the plugin works with sites and rows alone, so a family
is one file beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

Role = Literal["keys", "values"]
"""What a projection of the text is used for in attention."""

ROLES: tuple[Role, ...] = ("keys", "values")

Part = Literal["cross", "text", "all"]
"""What of a site's output E is for. cross: all of it, keys and values are text only. text: the part
that text tokens contribute, in an attention over text and image tokens with projections of their
own. all: everything, because text and image tokens share their projections."""


class Listener(Protocol):
    """Who wants to hear what sites put out while a model runs."""

    def rows(self, site: str, total: int) -> slice | None:
        """Which of all rows of the model call under way to pass on; None for none of them."""

    def hear(self, site: str, h: Tensor) -> None:
        """Take a site's h of these rows: (rows, positions, d), of the text's part where a picture
        is read beside it."""


@dataclass(frozen=True)
class Rows:
    """Some rows of one linear map: all of W_K, or a part of a fused weight."""

    module: str
    """Path of the linear module in the diffusion model."""

    start: int
    count: int

    total: int
    """Rows of the whole weight."""

    bias: bool = False
    """Whether the module has a bias, which is edited with the weight."""

    @property
    def whole(self) -> bool:
        """Whether these are all rows of the weight."""
        return self.count == self.total

    def of(self, weight: Tensor) -> Tensor:
        """These rows of the whole weight or bias, as a view."""
        return weight.narrow(0, self.start, self.count)


class Site(NamedTuple):
    """One attention in which image queries read text."""

    name: str
    """As erasers and files call it: a module path in the diffusion model."""

    part: Part

    out: str
    """Path of the module whose input is h."""

    keys: Rows
    values: Rows

    heads: int
    """Of the queries."""

    value_heads: int
    """Of keys and values; fewer than `heads` where queries share them in groups. Then h is the mean
    over the queries of a group, which has the width of the values."""

    head_dim: int

    text_width: int
    """Numbers in each text vector that keys and values are made of."""

    rows_axis: int = 0
    """Axis of prompts in h and in the values: 0, or 1 where positions come first."""

    @property
    def width(self) -> int:
        """d, in which E acts: the rows of the values."""
        return self.value_heads * self.head_dim

    def rows(self, role: Role) -> Rows:
        """Its keys or its values."""
        return self.keys if role == "keys" else self.values


Masks = Literal["each", "same", "alone"]
"""How prompts with masks run together. each: every row has its own. same: the model takes one mask
for a whole batch. alone: a prompt with a mask runs by itself."""


class Stream(NamedTuple):
    """Where text and picture become one stream. Paths may have -1 for the last of a list."""

    source: str
    """Module that puts out the tokens of one of them as they go in."""

    output: int | None
    """Which of its outputs they are; None if it has one."""

    into: str
    """First block that takes both."""

    who: Literal["text", "picture"] = "text"

    moved: bool = False
    """Whether a vector is added on the way, the same for all of its tokens."""


class LatentGeometry(NamedTuple):
    """How pictures and latents are related."""

    channels: int
    pixels_per_cell: int

    frames: int = 0
    """Frames of a clip that become one cell of the latent, which then has an axis of frames before
    height and width; 0 for pictures only. The first frame has a cell of its own."""

    one_frame: bool = False
    """Whether a picture's latent has the axis of frames too, of length 1."""

    patch: int = 1
    """Cells of a row or column that become one position of the first layer."""

    patch_frames: int = 1
    """Cells along the frames that become one position."""

    least_pixels: int = 0
    """Width and height below which the model cannot be run."""

    def cells(self, width: int, height: int, length: int = 1) -> tuple[int, ...]:
        """(channels, height, width) of the latent of a picture, or (channels, frames, height,
        width) of a clip of `length` frames, in cells."""
        clip = (1,) if self.one_frame else ()
        if self.frames:
            clip = (1 + (length - 1) // self.frames,)
        side = self.pixels_per_cell
        return (self.channels, *clip, height // side, width // side)

    @property
    def multiple(self) -> int:
        """Width and height in pixels are multiples of it."""
        return self.pixels_per_cell * self.patch


@dataclass(frozen=True)
class FileRows:
    """Rows of a tensor in a model's file."""

    tensor: str
    start: int
    count: int
    total: int

    @property
    def whole(self) -> bool:
        """Whether these are all rows of the tensor."""
        return self.count == self.total


class ModelFile(Protocol):
    """The diffusion model in a file, by the names and shapes of its tensors."""

    @property
    def family(self) -> str:
        """The family's name."""

    @property
    def prefix(self) -> str:
        """What the file puts before the names of the diffusion model's tensors."""

    @property
    def sites(self) -> Sequence[str]:
        """The names of its sites, as `Family.sites` gives them."""

    @property
    def entry(self) -> str | None:
        """The map through which all text enters, as `Family.text_entry` names it, if there is one.

        It may be asked for like a site; its keys and values are the same rows.
        """

    def shares(self, site: str) -> bool:
        """Whether text and picture share the projections of a site."""

    def widths(self, text: bool = False) -> dict[str, int]:
        """Site -> d, or the width of the text that it reads; of an entry, its alone."""

    def weight(self, site: str, role: Role) -> FileRows:
        """Where keys or values lie. Raises ModelFileError if the file lacks them."""

    def bias(self, site: str, role: Role) -> FileRows | None:
        """Where their bias lies, if they have one."""

    def lora_rows(self, site: str, role: Role) -> FileRows:
        """What a LoRA's tensors for the whole weight begin with, and where the rows lie in it.

        The name is one that ComfyUI and kohya's tools read.
        """

    def library_lora_rows(self, site: str, role: Role) -> FileRows:
        """The same for the diffusers library, by the paths of its own modules.

        Raises ModelFileError where the library loads no LoRA into it.
        """

    def diffusers_name(self, key: str) -> str:
        """A tensor's name in the diffusers library, `key` without the prefix.

        Raises ModelFileError where the library has no place for it.
        """

    def diffusers_config(self) -> dict[str, Any]:
        """The library's `config.json`. Raises ModelFileError where it cannot build the model."""


class Family(Protocol):
    """A family of models. One object a file, under the name `FAMILY`."""

    @property
    def name(self) -> str:
        """As erasers and files call it."""

    @property
    def models(self) -> str:
        """Its models, for messages: 'Stable Diffusion 1.x, 2.x and SDXL'."""

    @property
    def blocks(self) -> Mapping[str, str]:
        """Words for parts of the model -> what the names of the sites in it begin with."""

    def has(self, net: nn.Module) -> bool:
        """Whether a diffusion model is of this family."""

    def sites(self, net: nn.Module) -> list[Site]:
        """Where the model reads text, in the order of its modules; none if it reads none."""

    def listen(
        self,
        net: nn.Module,
        sites: Sequence[Site],
        listener: Listener,
        options: dict[str, Any],
    ) -> Callable[[], None]:
        """Pass on h of these sites at every model call, until the function returned is called.

        Nothing of the model may change.

        Args:
            options: ComfyUI's `transformer_options` of the model's clone that is run, for families
                that hear attention itself.
        """

    def latent(self, net: nn.Module) -> LatentGeometry:
        """How the model's latents are laid out."""

    def usual_size(self, net: nn.Module, predicts_velocity: bool) -> int:
        """Width and height in pixels of the pictures that the model was made for."""

    def text_width(self, net: nn.Module) -> int:
        """Numbers in each vector that the text encoder has to give."""

    def text_entry(self, net: nn.Module) -> Rows | None:
        """The linear map through which all of the text enters the model, for methods on the text.

        None where every site reads the text encoder's vectors itself.
        """

    def before_entry(self, net: nn.Module) -> Callable[[Tensor], Tensor] | None:
        """What makes of the text encoder's vectors (B, T, D) those that this map takes, if there is
        something: a norm, or layers in which a prompt's words read each other."""

    @property
    def other_texts(self) -> tuple[str, ...]:
        """ComfyUI's names of what else the sites read, encoded by other text encoders.

        It has to be there.
        """

    def shares(self, site: str) -> bool:
        """Whether text and picture share the projections of a site."""

    @property
    def stream(self) -> Stream | None:
        """Where the text can be found in the stream of shared sites; None if there are none."""

    @property
    def masks(self) -> Masks:
        """How prompts with masks run together."""

    def guides_itself(self, net: nn.Module) -> bool:
        """Whether the model is told the guidance, so that it runs without the empty prompt."""

    def edits_text(self, net: nn.Module) -> bool:
        """Whether methods on the text reach all that the sites read of a prompt.

        They do not where text encoders are read side by side, or where picture and sound each read
        their own of a prompt.
        """

    @property
    def keys_are_linear(self) -> bool:
        """Whether keys reach attention as W_K makes them, so that E W_K gives E k.

        Where a norm or a rotation comes between, methods that edit keys and values edit the values
        alone.
        """

    def short_name(self, site: str) -> str:
        """A site's name for people, where there is little room."""

    def in_file(self, shapes: Mapping[str, tuple[int, ...]]) -> ModelFile | None:
        """The model in a file with these tensors, or None if it holds none of this family."""


Hook = tuple[nn.Module, Callable[..., Any], bool]
"""A module, what is called, and whether that is before the module runs."""


def run_again_before(
    attention: nn.Module, hooks: Callable[[tuple[Any, ...]], Sequence[Hook]]
) -> Callable[[], None]:
    """Before every run of an attention, run it once more with hooks, until the function that is
    returned is called.

    Args:
        hooks: From what it is run with to the hooks of the run before; without any there is none.
    """
    running = False

    def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal running
        wanted = () if running else hooks(args)
        if not wanted:
            return
        running = True
        with ExitStack() as attached:
            for where, hook, before in wanted:
                put = where.register_forward_pre_hook if before else where.register_forward_hook
                attached.callback(put(hook).remove)
            try:
                module(*args, **kwargs)
            finally:
                running = False

    stop: Callable[[], None] = attention.register_forward_pre_hook(run, with_kwargs=True).remove
    return stop


def listen_to_outputs(
    net: nn.Module, sites: Sequence[Site], listener: Listener
) -> Callable[[], None]:
    """For sites whose h is all that `site.out` gets: a forward pre-hook there reads it.

    It sees h whatever attention backend, LoRA or attention patch is in use.
    """
    hooks = ExitStack()
    for site in sites:

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], site: Site = site) -> None:
            h = inputs[0].movedim(site.rows_axis, 0)
            rows = listener.rows(site.name, h.shape[0])
            if rows is not None:
                listener.hear(site.name, h[rows])

        hooks.callback(net.get_submodule(site.out).register_forward_pre_hook(hook).remove)
    return hooks.close
