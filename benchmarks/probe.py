"""Where a concept can be read: a linear classifier on text vectors against one on activations.

    python3 dev.py run benchmarks/probe.py

PURE's (arXiv 2605.25765) reason to work on activations: a classifier that is trained on the short
anchor prompts finds the concept in natural prompts when it reads activations, and less so when it
reads the text encoder's vectors. Here it is logistic regression, trained on the anchors that the
nodes write (concept against neighbours) and asked about natural prompts that none of them is: those
that name the concept, those that only describe it, and those of neighbours, which it should not
take for it. On the small model's narrow form, development and held-out concepts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from testbed.comfy import inprocess

inprocess.enter()

from comfyui_pure.pure_core.anchors import AnchorSet

from benchmarks.common import RESULTS, markdown
from benchmarks.narrow import NarrowUNet
from testbed.comfy.erasable import TRAJECTORY, anchors_of
from testbed.world.measure import DRAWN, Prompt, Rate, Trial
from testbed.world.vocabulary import DEVELOPMENT, HELD_OUT

PENALTY = 1e-2
Features = Callable[[AnchorSet], Tensor]
"""Prompts to (n, d)."""


class Reader:
    """What a classifier may look at."""

    def __init__(self, model: NarrowUNet) -> None:
        self._model = model

    def last_word(self, prompts: AnchorSet) -> Tensor:
        """The text vector of the last word's last token, which UCE and its kin edit."""
        return self._model.vectors(prompts).last.float()

    def end(self, prompts: AnchorSet) -> Tensor:
        """The text vector of the end token, which has read the whole prompt."""
        found = self._model.vectors(prompts)
        pairs = zip(found.vectors, found.ends, strict=True)
        return torch.stack([each[end] for each, end in pairs]).float()

    def words(self, prompts: AnchorSet) -> Tensor:
        """The mean text vector of the words."""
        found = self._model.vectors(prompts)
        pairs = zip(found.vectors, found.ends, strict=True)
        return torch.stack([each[1:end].mean(0) for each, end in pairs]).float()

    def activations(self, prompts: AnchorSet) -> Tensor:
        """The captured rows of all layers, averaged over latents and steps."""
        captured = self._model.captured(prompts, TRAJECTORY)
        return torch.cat([captured.grid(name).mean((1, 2)) for name in captured.rows], dim=1)


def train(positive: Tensor, negative: Tensor) -> Callable[[Tensor], Tensor]:
    """Logistic regression, both classes of equal weight: features (n, d) to yes or no (n,)."""
    rows = torch.cat([positive, negative])
    mean, spread = rows.mean(0), rows.std(0).clamp(min=1e-6)
    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
    weights = torch.where(labels > 0, 0.5 / len(positive), 0.5 / len(negative))
    inputs = (rows - mean) / spread
    slope = torch.zeros(rows.shape[1], requires_grad=True)
    offset = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([slope, offset], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        scores = inputs @ slope + offset
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            scores, labels, weights, reduction="sum"
        )
        total = losses + PENALTY * slope.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    return lambda found: ((found - mean) / spread) @ slope.detach() + offset.detach() > 0


def probe(trial: Trial, features: Features) -> tuple[Rate, Rate, Rate]:
    """Found in prompts that name the concept, that describe it, and in those of neighbours."""
    forget, retain = anchors_of(trial)
    classify = train(features(forget), features(retain))

    def found(group: Sequence[Prompt]) -> Rate:
        if not group:
            return Rate(0, 0)
        answers = classify(features(AnchorSet.written([[prompt.text] for prompt in group])))
        return Rate(int(answers.sum()), len(group))

    return (
        found(trial.by_name),
        found(trial.by_description),
        found([*trial.neighbours, *trial.unlisted_neighbours]),
    )


def table(model: NarrowUNet, trials: Iterable[Trial]) -> str:
    """One row per kind and features."""
    reader = Reader(model)
    readers: dict[str, Features] = {
        "text: last word": reader.last_word,
        "text: end token": reader.end,
        "text: mean of words": reader.words,
        "activations": reader.activations,
    }
    totals: dict[tuple[str, str], list[Rate]] = {}
    for trial in trials:
        for name, features in readers.items():
            rates = probe(trial, features)
            for kind in (trial.kind, "all"):
                before = totals.setdefault((kind, name), [Rate(0, 0)] * 3)
                totals[kind, name] = [a + b for a, b in zip(before, rates, strict=True)]
        print(trial.kind, trial.concept, flush=True)
    heads = ("kind", "read from", "named", "described", "neighbours taken for it")
    return markdown(heads, [(*key, *rates) for key, rates in sorted(totals.items())])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=int, default=4, help="concepts of each kind and split")
    parser.add_argument("--count", type=int, default=24, help="prompts for each number")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    trials = (
        DRAWN.trial(kind, concept, args.count)
        for split in (DEVELOPMENT, HELD_OUT)
        for kind in split
        for concept in split[kind][: args.limit]
    )
    text = table(NarrowUNet(), trials)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "probe.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
