"""PURE Erase Concept captures once: strength, method and rank are tried on what is remembered."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from comfyui_pure.nodes import EraseConcept
from comfyui_pure.nodes.host.capture import memory, run

from testbed.comfy.stock import QUICK_ERASING, Loaded, execute, with_lora, with_wrapper

CONCEPT = {
    "concept": "ball",
    "kind": "object",
    "neighbours": "star\nheart",
    "templates": "{}\na photo of {}",
}


class Watched:
    """A model that counts its calls."""

    def __init__(self, model: Any, clip: Any) -> None:
        self.calls = 0
        self.model, self.clip = with_wrapper(model, self._count), clip

    def _count(self, call: dict[str, Any]) -> None:
        self.calls += 1

    def erase(self, method: str = "ridge", strength: float = 1.0, **more: Any) -> tuple[Any, int]:
        """The eraser, and how many model calls it took."""
        before = self.calls
        given = {**CONCEPT, **QUICK_ERASING, **more}
        outputs = execute(
            EraseConcept,
            model=self.model,
            clip=self.clip,
            method=method,
            strength=strength,
            **given,
        )
        return outputs[1], self.calls - before


@pytest.fixture
def watched(loaded: Loaded) -> Iterator[Watched]:
    yield Watched(loaded.model, loaded.clip)


def test_strength_method_and_rank_do_not_capture_again(watched: Watched) -> None:
    first, calls = watched.erase()
    assert calls > 0
    for change in ({"strength": 0.5}, {"method": "leace"}, {"max_rank": 2}):
        _, again = watched.erase(**change)
        assert again == 0, change
    same, _ = watched.erase()
    assert same.fingerprint == first.fingerprint


def test_a_replacement_is_remembered_with_the_rest(watched: Watched) -> None:
    plain, calls = watched.erase()
    first, again = watched.erase(replacement="bell")
    assert 0 < again <= calls  # one run, as long as it fits into one batch
    assert first.fingerprint != plain.fingerprint
    for change in ({"strength": 0.5}, {"max_rank": 2}):
        assert watched.erase(replacement="bell", **change)[1] == 0
    assert watched.erase(replacement="tree")[1] > 0


def test_what_arrives_is_measured_once_for_an_eraser_that_mixes_heads(watched: Watched) -> None:
    _, calls = watched.erase()
    _, measuring = watched.erase("pure")
    assert 0 < measuring <= calls
    assert watched.erase("pure", 0.5)[1] == 0


def test_a_capture_by_cells_serves_for_whole_pictures_bit_for_bit(watched: Watched) -> None:
    whole, _ = watched.erase("ridge")
    _, calls = watched.erase("mosaic")  # needs parts of the picture
    assert calls > 0
    memory.remembered[watched.model][1:] = []  # the one by cells alone
    again, none = watched.erase("ridge")
    assert none == 0 and again.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    "change", [{"concept": "crate"}, {"neighbours": "star"}, {"seed": 1}, {"steps": 5}]
)
def test_what_the_rows_depend_on_captures_again(watched: Watched, change: dict[str, Any]) -> None:
    watched.erase()
    assert watched.erase(**change)[1] > 0


def test_another_model_captures_again(watched: Watched) -> None:
    watched.erase()
    patched = Watched(with_lora(watched.model), watched.clip)
    assert patched.erase()[1] > 0


def test_captures_go_with_their_model(loaded: Loaded) -> None:
    watched = Watched(loaded.model, loaded.clip)
    watched.erase()
    gc.collect()
    held = len(memory.remembered)
    del watched
    gc.collect()
    assert len(memory.remembered) == held - 1


def test_no_more_than_two_are_remembered(watched: Watched) -> None:
    for seed in range(4):
        watched.erase(seed=seed)
    assert len(memory.remembered[watched.model]) == memory.MOST


def test_only_the_last_is_remembered_where_two_are_too_large(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.erase(seed=0)
    (entry,) = memory.remembered[watched.model]
    monkeypatch.setattr(run, "MOST_MEMORY", 2 * entry.captured.size() - 1)
    watched.erase(seed=1)
    (left,) = memory.remembered[watched.model]
    assert left is not entry
    assert watched.erase(seed=1)[1] == 0
