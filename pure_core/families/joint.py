"""Transformers whose text and picture share one attention.

There are two kinds of sites. In a block of two streams the text has projections of its own, so its
values can be edited alone; in a block of one stream ("all") text and picture go through the same.

At both, h is the part that the text's tokens put into what the picture's tokens read: the sum over
text tokens of weight times value, with the softmax over all tokens. It is had by calling the same
attention once more with the picture's values zero: the output is linear in the values. Where the
text stands is found by comparing values, never by a table of orders, which differ between versions
of ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from .site import Listener, Site, Stream
from .transformer import Transformer
from .transformer_file import filled

OVERRIDE = "optimized_attention_override"
"""The one slot for an attention of somebody else, in ComfyUI's `transformer_options`."""


class Kind(NamedTuple):
    """One kind of site, in the order of the patterns of the family's first spelling."""

    out: str
    """Module that h goes into, with `#` for the site's numbers. There may be more behind h."""

    heads: str
    """In the site, the attribute that counts heads."""

    value_heads: str = ""
    """That of keys and values, if they have fewer."""


@dataclass(frozen=True, kw_only=True)
class JointTransformer(Transformer):
    """See `Family`."""

    kinds: tuple[Kind, ...]

    stream: Stream | None = None
    """None without blocks of one stream."""

    def site(self, net: nn.Module, path: str, kind: int, places: Sequence[str]) -> Site:
        about, module = self.kinds[kind], net.get_submodule(path)
        values = self.rows(net, path, kind, "values")
        reader: Any = net.get_submodule(values.module)
        heads = getattr(module, about.heads)
        value_heads = getattr(module, about.value_heads or about.heads)
        return Site(
            name=path,
            part="all" if kind in self.names.shared else "text",
            out=filled(about.out, places),
            keys=self.rows(net, path, kind, "keys"),
            values=values,
            heads=heads,
            value_heads=value_heads,
            head_dim=values.count // value_heads,
            text_width=reader.in_features,
        )

    def listen(
        self, net: nn.Module, sites: Sequence[Site], listener: Listener, options: dict[str, Any]
    ) -> Callable[[], None]:
        return AttentionReader(net, sites, self.stream, listener, options).close


class Attended(NamedTuple):
    """One call of attention."""

    q: Tensor
    k: Tensor
    v: Tensor
    """(rows, heads, tokens, d), or (rows, tokens, heads d) and also with heads apart."""

    rest: tuple[Any, ...]
    more: dict[str, Any]

    @property
    def axis(self) -> int:
        """Of tokens."""
        return 2 if self.more.get("skip_reshape") else 1

    @property
    def tokens(self) -> int:
        """Of keys and values."""
        return self.v.shape[self.axis]

    def values(self) -> Tensor:
        """(rows, tokens, heads d)."""
        v = self.v.movedim(1, 2) if self.axis == 2 else self.v
        return v.flatten(2) if v.ndim == 4 else v

    def of_text(self, rows: slice, text: slice) -> Attended:
        """The same for some rows and the picture's queries, with values of the text only."""
        only = torch.zeros_like(self.v[rows])
        length = text.stop - text.start
        only.narrow(self.axis, text.start, length).copy_(
            self.v[rows].narrow(self.axis, text.start, length)
        )
        picture = others(text, self.q.shape[self.axis])
        start, count = picture.start, picture.stop - picture.start
        q = self.q[rows].narrow(self.axis, start, count)
        cut = partial(self._cut, rows=rows, picture=picture)
        rest = (*self.rest[:1], *map(cut, self.rest[1:2]), *self.rest[2:])
        more = {name: cut(each) if name == "mask" else each for name, each in self.more.items()}
        return Attended(q, self.k[rows], only, rest, more)

    def _cut(self, mask: Tensor | None, rows: slice, picture: slice) -> Tensor | None:
        """A mask (.., queries, keys), whose first axis may be that of rows."""
        if mask is None:
            return None
        of_rows = mask.ndim > 2 or mask.shape[0] != self.q.shape[self.axis]
        if of_rows and mask.shape[0] == len(self.q) > 1:
            mask = mask[rows]
        if mask.shape[-2] == self.q.shape[self.axis] > 1 and (mask.ndim > 2 or not of_rows):
            mask = mask[..., picture, :]
        return mask

    def run(self, attention: Callable[..., Tensor]) -> Tensor:
        """(rows, tokens, heads d)."""
        out = attention(self.q, self.k, self.v, *self.rest, **self.more)
        if self.more.get("skip_output_reshape"):
            return rearrange(out, "row head token d -> row token (head d)")
        return out


class AttentionReader:
    """Hears the text's part at every site while a model runs, until it is closed."""

    def __init__(
        self,
        net: nn.Module,
        sites: Sequence[Site],
        stream: Stream | None,
        listener: Listener,
        options: dict[str, Any],
    ) -> None:
        self._listener, self._options = listener, options
        self._before = options.get(OVERRIDE)
        self._pending: tuple[Site, Tensor] | None = None
        """Whose values were just made, and these."""

        self.text = TextPlace()
        with ExitStack() as hooks:
            if stream is not None:
                hooks.callback(self.text.watch(net, stream))
            for site in sites:
                projection = net.get_submodule(site.values.module)
                hook = partial(self._projected, site)
                hooks.callback(projection.register_forward_hook(hook).remove)
            self._hooks = hooks.pop_all()
        options[OVERRIDE] = self._attend

    def close(self) -> None:
        """Leave everything as it was."""
        self._hooks.close()
        self._options.pop(OVERRIDE)
        if self._before is not None:
            self._options[OVERRIDE] = self._before

    def _projected(self, site: Site, _module: nn.Module, _inputs: Any, out: Tensor) -> None:
        rows = site.values
        self._pending = site, out[..., rows.start : rows.start + rows.count]

    def _attend(
        self,
        attention: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        """In the place of an attention; whoever was there before goes on being called."""
        call = attention if self._before is None else partial(self._before, attention)
        if self._pending is not None:
            self._hear(call, Attended(q, k, v, rest, more))
        return call(q, k, v, *rest, **more)

    def _hear(self, call: Callable[..., Tensor], attended: Attended) -> None:
        assert self._pending is not None
        site, values = self._pending
        if site.part == "all":
            text = self.text.among(attended.tokens)
        else:
            text = found_in(attended, values, site)
        if text is None:  # another attention
            return
        self._pending = None
        rows = self._listener.rows(site.name, len(attended.q))
        if rows is not None:
            h = attended.of_text(rows, text).run(call)
            self._listener.hear(site.name, folded(h, site))


class TextPlace:
    """Where the text stands in a stream that it shares with the picture."""

    def __init__(self) -> None:
        self._tokens: Tensor | None = None
        self._found: tuple[bool, int] | None = None
        """Whether what is watched comes first, and how many tokens it has."""

        self._text = True

    def watch(self, net: nn.Module, stream: Stream) -> Callable[[], None]:
        """Find it in every call, until the function that is returned is called."""
        self._text = stream.who == "text"
        same = same_but_moved if stream.moved else torch.equal

        def keep(_module: nn.Module, _inputs: Any, out: Any) -> None:
            self._tokens = out if stream.output is None else out[stream.output]

        def find(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            own, self._found = self._tokens, None
            if own is None:  # called without a text
                return
            count = own.shape[1]
            for each in (*args, *kwargs.values()):
                if not isinstance(each, Tensor) or each.ndim != 3 or each.shape[1] <= count:
                    continue
                if len(each) != len(own) or each.shape[2] != own.shape[2]:
                    continue
                if same(each[:, :count], own):
                    self._found = True, count
                elif same(each[:, -count:], own):
                    self._found = False, count

        source, into = module_at(net, stream.source), module_at(net, stream.into)
        kept = source.register_forward_hook(keep)
        seen = into.register_forward_pre_hook(find, with_kwargs=True)

        def stop() -> None:
            kept.remove()
            seen.remove()

        return stop

    @property
    def passed(self) -> bool:
        """Whether there was a text."""
        return self._tokens is not None

    def among(self, tokens: int) -> slice | None:
        """The text's tokens among so many."""
        if self._found is None:
            return None
        first, count = self._found
        own = slice(0, count) if first else slice(tokens - count, tokens)
        return own if self._text else others(own, tokens)


def same_but_moved(one: Tensor, other: Tensor) -> bool:
    """Whether two texts (rows, tokens, d) differ by the same vector everywhere, up to rounding.

    The sum was rounded to the model's type, so what rounding left is as large as the text makes it.
    """
    other = other.float()
    apart = one.float() - other
    return bool((apart - apart[:1, :1]).norm() <= 1e-2 * max(apart.norm(), other.norm()))


def found_in(attended: Attended, own: Tensor, site: Site) -> slice | None:
    """Where these very values (rows, text, d) are: the first or the last."""
    values, tokens, count = attended.values(), attended.tokens, own.shape[1]
    if values.shape[2] != site.width and values.shape[2] == site.heads * site.head_dim:
        each = site.heads // site.value_heads  # repeated for the queries of a group
        values = rearrange(
            values, "row t (g each d) -> each row t (g d)", each=each, g=site.value_heads
        )[0]
    if count > tokens or own.shape[2] != values.shape[2] or len(own) != len(values):
        return None
    own = own.to(values.dtype)
    for start in (0, tokens - count):
        if torch.equal(values[:, start : start + count], own):
            return slice(start, start + count)
    return None


def folded(h: Tensor, site: Site) -> Tensor:
    """(rows, positions, heads d) in the width of the values: the mean over queries of a group."""
    if site.heads == site.value_heads:
        return h
    groups, each = site.value_heads, site.heads // site.value_heads
    return reduce(h, "row p (g each d) -> row p (g d)", "mean", g=groups, each=each)


def others(text: slice, tokens: int) -> slice:
    """What is not the text's, all of it on one side."""
    return slice(text.stop, tokens) if text.start == 0 else slice(0, text.start)


def module_at(net: nn.Module, path: str) -> nn.Module:
    """A module by a path in which -1 is the last of a list."""
    found: Any = net
    for name in path.split("."):
        found = found[int(name)] if name.lstrip("-").isdigit() else getattr(found, name)
    module: nn.Module = found
    return module
