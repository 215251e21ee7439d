"""Averaged weights (EMA), which some checkpoints hold beside those that are sampled with.

Trainers keep a second copy of the model under names such as `model_ema.` and, as latent-diffusion
does, without the dots: `model.diffusion_model.input_blocks.1.1...` is
`model_ema.diffusion_modelinput_blocks11...` there. Some programs sample with it, so it has to be
erased, too, or left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..files.safetensors_file import DTYPES, Entry

_AVERAGED = re.compile(r"(?:[^.]*\.)?(?:[^.]*_)?ema[._]")
"""Ema as a word of the first or second part of a name."""

ERASED = "erased, too"
LEFT_OUT = "left out"


@dataclass(frozen=True)
class Averages:
    """A file's averaged weights."""

    tensors: frozenset[str]
    """All of them, with what belongs to them."""

    copies: Mapping[str, str]
    """Averaged tensor -> the edited tensor that it is the average of. Empty if that is not clear
    for every one of them."""

    @property
    def done(self) -> str:
        """What becomes of them in an erased file; empty if there are none."""
        if not self.tensors:
            return ""
        return ERASED if self.copies else LEFT_OUT

    @property
    def left_out(self) -> Collection[str]:
        """Those that an erased file must not hold."""
        return () if self.copies else self.tensors

    @property
    def note(self) -> str:
        """For people, what became of them."""
        if not self.tensors:
            return ""
        count = f"The source also holds averaged weights (EMA, {len(self.tensors)} tensors)"
        if self.copies:
            return f"{count}. They are erased, too."
        return (
            f"{count} whose names do not say which weights they belong to. They are left out: they "
            "would bring the concept back."
        )


def averages(entries: Mapping[str, Entry], prefix: str, edited: Collection[str]) -> Averages:
    """The averaged weights among a file's tensors.

    Args:
        prefix: What the file puts before the names of the diffusion model's tensors.
        edited: The tensors that erasing changes.
    """
    own: dict[str, list[str]] = {}
    for name in edited:
        own.setdefault(name.removeprefix(prefix).replace(".", ""), []).append(name)
    blocks = {name.removeprefix(prefix).partition(".")[0] for name in edited}
    copies: dict[str, str] = {}
    covered: dict[str, list[str]] = {}
    for name, entry in entries.items():
        start = _AVERAGED.match(name)
        if start is None or (prefix and name.startswith(prefix)):
            continue
        places = [at for each in blocks if (at := name.find(each, start.end())) >= 0]
        if not places:
            continue
        found = covered.setdefault(start[0], [])
        originals = own.get(name[min(places) :].replace(".", ""), [])
        if len(originals) == 1 and _is_average(entry, entries[originals[0]]):
            copies[name] = originals[0]
            found.append(originals[0])
    clear = all(sorted(found) == sorted(edited) for found in covered.values())
    belonging = (name for name in entries if covered and name.startswith(tuple(covered)))
    return Averages(frozenset(belonging), copies if clear else {})


def _is_average(one: Entry, other: Entry) -> bool:
    return one.shape == other.shape and one.dtype in DTYPES
