"""The methods by text against their published formulas, written out densely, and at their limits.

Dense matrices act on columns as in the papers: W (d, D), c (D,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pure_core.anchors import Anchor, AnchorSet
from pure_core.bases import fit_basis
from pure_core.eraser import Eraser, LayerEraser
from pure_core.errors import FitError
from pure_core.families import ROLES
from pure_core.fitting import fit_text
from pure_core.methods import TEXT_METHODS
from pure_core.methods.cure import cure_factors
from pure_core.methods.double_projections import kept, names, outside_of, proxy
from pure_core.methods.oce import oce_rotation
from pure_core.methods.pure import pure_factors
from pure_core.methods.rece import recovered, weight_moment
from pure_core.methods.speed import COPIES, influenced, invariants, speed_factors
from pure_core.methods.uce import uce_factors
from pure_core.progress import no_progress
from pure_core.text import TextTask, TextVectors, paired, repeated
from tests.core.texts import (
    FORGET,
    LAYERS,
    LENGTH,
    RETAIN,
    WIDTH,
    edited,
    encoded,
    random,
    text_model,
    text_task,
    weights,
)

EYE = torch.eye(WIDTH, dtype=torch.float64)
TASKS = {
    "usual": text_task(),
    "one prompt": text_task(("a cat",)),
    "no anchor": text_task(anchor=("",)),
    "no retain": text_task(retain=()),
    "two concepts": text_task(
        ("a cat", "small cat", "a tall tower"), ("an animal", "animal", "house"), concepts=(2, 1)
    ),
}
WITH_RETAIN = [name for name in TASKS if name != "no retain"]
ITSELF = text_task(anchor=FORGET)
NARROW = next(iter(LAYERS))


def assert_edits(task: TextTask, eraser: Eraser, wanted: Callable[[str, str, Tensor], Tensor]):
    """Every edited weight is W' = wanted(layer, role, W), and W' is not W."""
    after = edited(task, eraser)
    for (layer, role), before in weights(task, eraser).items():
        expected = wanted(layer, role, before)
        assert (expected - before).norm() > 1e-2 * before.norm()
        assert (after[layer, role] - expected).norm() < 2e-6 * expected.norm()


def assert_still(task: TextTask, eraser: Eraser, vectors: Tensor | None = None, tol: float = 2e-5):
    """All edited weights read the vectors as before; without vectors, everything."""
    seen = EYE if vectors is None else vectors.T
    after = edited(task, eraser)
    for which, before in weights(task, eraser).items():
        assert (after[which] @ seen - before @ seen).norm() < tol * (before @ seen).norm()


def changes(task: TextTask, eraser: Eraser) -> float:
    """The least relative change of a weight."""
    after = edited(task, eraser)
    pairs = [(after[which], before) for which, before in weights(task, eraser).items()]
    return min(float((one - other).norm() / other.norm()) for one, other in pairs)


def beyond(method: str, task: TextTask, **settings: float | str) -> Eraser:
    """The eraser with settings outside the range that a person can choose from."""
    chosen, usual = TEXT_METHODS[method], fit_text(method, task)
    values = {each.name: each.default for each in chosen.settings} | settings

    def solved(layer: str) -> LayerEraser:
        if chosen.solve is None:
            found = chosen.solve_layer(task, layer, **values)
        else:
            found = chosen.solve(task, no_progress, **values)
        return LayerEraser(found.left.float(), found.right.float(), space=usual.space)

    return replace(usual, layers={layer: solved(layer) for layer in usual.layers})


# UCE


def dense_uce(
    w: Tensor,
    c: Tensor,
    there: Tensor,
    kept: Tensor,
    *,
    erase: float = 1.0,
    preserve: float = 1.0,
    ridge: float = 0.5,
) -> Tensor:
    """Equation 7, a sum over vectors."""
    left, right = ridge * w, ridge * EYE
    for one, other in zip(c, there, strict=True):
        left = left + erase * torch.outer(w @ other, one)
        right = right + erase * torch.outer(one, one)
    for one in kept:
        left = left + preserve * torch.outer(w @ one, one)
        right = right + preserve * torch.outer(one, one)
    return left @ torch.linalg.inv(right)


def last(vectors: TextVectors | None) -> Tensor:
    if vectors is None:
        return torch.zeros(0, WIDTH, dtype=torch.float64)
    pairs = zip(vectors.vectors, vectors.ends, strict=True)
    return torch.stack([rows[end - 1] for rows, end in pairs])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize(
    ("erase", "preserve", "ridge"), [(1.0, 1.0, 0.5), (3.0, 0.1, 0.2), (1.0, 0.0, 2.0)]
)
def test_uce_is_equation_7_in_every_layer(task, erase, preserve, ridge):
    settings = {"erase": erase, "preserve": preserve, "ridge": ridge}
    rows = last(task.forget), last(task.anchor), last(task.retain)
    eraser = fit_text("uce", task, **settings)
    assert_edits(task, eraser, lambda *at: dense_uce(at[2], *rows, **settings))


def test_uce_with_the_padding_pairs_every_token_from_the_last_words_on():
    task = TASKS["usual"]
    c, there, kept = [], [], []
    for number, rows in enumerate(task.forget.vectors):
        here, anchor = task.forget.ends[number] - 1, task.anchor.ends[number] - 1
        for step in range(LENGTH - max(here, anchor)):
            c.append(rows[here + step])
            there.append(task.anchor.vectors[number][anchor + step])
    for rows, end in zip(task.retain.vectors, task.retain.ends, strict=True):
        kept += list(rows[end - 1 :])
    eraser = fit_text("uce", task, tokens="last and after")
    assert_edits(task, eraser, lambda *at: dense_uce(at[2], c, there, kept))


@pytest.mark.parametrize("count", [3, 30])
def test_uce_minimises_its_objective(count):
    """With fewer vectors than channels and with more."""
    c, there, kept = (random(n, WIDTH, seed=n) for n in (count, count, count + 1))
    there = there + 1
    w = random(7, WIDTH, seed=9)
    left, right = uce_factors(c, there, kept, erase=2.0, preserve=0.3, ridge=0.7)

    def objective(found: Tensor) -> Tensor:
        erased = (found @ c.T - w @ there.T).square().sum()
        preserved = (found @ kept.T - w @ kept.T).square().sum()
        return 2.0 * erased + 0.3 * preserved + 0.7 * (found - w).square().sum()

    best = (w @ (EYE - left @ right)).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(best), best)
    (at_w,) = torch.autograd.grad(objective(w.requires_grad_()), w)
    assert gradient.norm() < 1e-10 * at_w.norm()


def test_uce_between_its_limits():
    task = TASKS["usual"]
    assert_still(task, beyond("uce", task, ridge=1e7))
    assert_still(task, beyond("uce", task, preserve=1e7), last(task.retain))
    moved = fit_text("uce", task, ridge=1e-7, preserve=0)
    after = edited(task, moved)
    for which, before in weights(task, moved).items():
        there = before @ last(task.anchor).T
        assert (after[which] @ last(task.forget).T - there).norm() < 1e-5 * there.norm()


# CURE


def dense_cure(rows: Tensor, alpha: float) -> Tensor:
    """Equation 4 as a function of the matrix: the shares are its eigenvalues."""
    share = rows.T @ rows / rows.square().sum()
    return alpha * share @ torch.linalg.inv((alpha - 1) * share + EYE)


def words(vectors: TextVectors) -> Tensor:
    pairs = zip(vectors.vectors, vectors.ends, strict=True)
    return torch.cat([rows[1:end] for rows, end in pairs])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("alpha", [1.0, 2.0, 50.0])
def test_cure_is_equation_7_in_every_layer(task, alpha):
    p_f = dense_cure(words(task.forget), alpha)
    p_r = 0 * EYE if task.retain is None else dense_cure(words(task.retain), alpha)
    eraser = fit_text("cure", task, alpha=alpha)
    assert_edits(task, eraser, lambda *at: at[2] @ (EYE - (p_f - p_f @ p_r)))


def test_cure_with_a_high_alpha_is_pure_on_the_tokens():
    forget, retain = words(encoded("a cat", "cat")), words(encoded("a dog", "a small fox"))
    bases = fit_basis(forget, 1.0).vectors, fit_basis(retain, 1.0).vectors
    left, right = pure_factors(*bases)
    cured = cure_factors(forget, retain, 1e12)
    assert (left @ right).norm() > 0.5
    assert torch.allclose(cured[0] @ cured[1], left @ right, atol=1e-8)
    kept = cure_factors(forget, forget, 1e12)
    assert torch.allclose(kept[0] @ kept[1], 0 * EYE, atol=1e-8)


def test_cure_without_retain_takes_every_token_out():
    rows = words(encoded("a cat"))
    left, right = cure_factors(rows, None, 1e12)
    assert torch.allclose(rows - (rows @ right.T) @ left.T, 0 * rows, atol=1e-8)


def test_retained_prompts_without_words_keep_nothing():
    task = text_task(retain=("",))
    none = text_task(retain=())
    for method in ("cure", "double projections"):
        one, other = fit_text(method, task), fit_text(method, none)
        assert one.fingerprint == other.fingerprint


# RECE


def all_weights(task: TextTask) -> dict[tuple[str, str], Tensor]:
    return {
        (layer, role): task.model.weight_of(layer, role).double()
        for layer in task.model.layers
        for role in ROLES
    }


def dense_rece(
    task: TextTask, rounds: int, recovery: float, again: dict[str, float], **at: float
) -> dict:
    """Equation by equation on the weights of every layer, never on E; `again` in the rounds."""
    c, there, kept = last(task.forget), last(task.anchor), last(task.retain)
    original = all_weights(task)
    now = {which: dense_uce(w, c, there, kept, **at) for which, w in original.items()}
    for _ in range(rounds):
        seen = sum(w.T @ w for w in now.values()) + recovery * EYE
        crossed = sum(w.T @ original[which] for which, w in now.items())
        found = [torch.linalg.inv(seen) @ crossed @ each for each in c]
        now = {which: dense_uce(w, found, there, kept, **again) for which, w in now.items()}
    return now


@pytest.mark.parametrize("name", WITH_RETAIN)
@pytest.mark.parametrize(("rounds", "recovery"), [(1, 0.1), (3, 1e-3), (5, 2.0)])
def test_rece_is_its_rounds_on_the_weights(name, rounds, recovery):
    task, at = TASKS[name], {"erase": 1.0, "preserve": 0.3, "ridge": 0.5}
    settings = {"rounds": rounds, "recovery": recovery, **at}
    for again in ({"preserve": 0.1, "ridge": 0.1}, {"preserve": 0.7, "ridge": 0.4}):
        expected = dense_rece(task, rounds, recovery, again, **at)
        chosen = {f"round_{each}": value for each, value in again.items()}
        eraser = fit_text("rece", task, **settings, **(chosen if again["ridge"] != 0.1 else {}))
        assert_edits(task, eraser, lambda *which, wanted=expected: wanted[which[:2]])


@pytest.mark.parametrize("tokens", ["last", "last and after"])
def test_rece_without_rounds_or_with_nothing_to_recover_is_uce(tokens):
    task = TASKS["usual"]
    uce = fit_text("uce", task, tokens=tokens)
    for settings in ({"rounds": 0}, {"rounds": 3, "recovery": 1e9}):
        rece = beyond("rece", task, tokens=tokens, **settings)
        for which, after in edited(task, uce).items():
            assert (edited(task, rece)[which] - after).norm() < 1e-5 * after.norm()
    more = edited(task, fit_text("rece", task, tokens=tokens, rounds=1))
    uce_weights = edited(task, uce)
    assert all((more[which] - uce_weights[which]).norm() > 1e-2 for which in more)


def test_recovered_vectors_come_closest_to_what_was_read():
    task, recovery = TASKS["usual"], 0.2
    c, before = last(task.forget), all_weights(task)
    edit = edited_identity(fit_text("uce", task))
    found = recovered(c, edit, weight_moment(task, lambda done, total: None), recovery)

    def objective(guess: Tensor) -> Tensor:
        missed = sum(((w @ edit) @ guess.T - w @ c.T).square().sum() for w in before.values())
        return missed + recovery * guess.square().sum()

    (gradient,) = torch.autograd.grad(objective(found.requires_grad_()), found)
    start = c.clone().requires_grad_()
    (at_start,) = torch.autograd.grad(objective(start), start)
    assert gradient.norm() < 1e-10 * at_start.norm()


def edited_identity(eraser: Eraser) -> Tensor:
    """E (D, D) of an edit that is the same in all layers."""
    return eraser.layers[NARROW].to(torch.float64).P


@pytest.mark.parametrize("name", ["one prompt", "no retain"])
def test_every_round_makes_the_concept_harder_to_recover(name):
    """Not so for any prompts: what keeps the retained ones may bring some of the concept back."""
    task = TASKS[name]
    c, before = last(task.forget), all_weights(task)
    moment = weight_moment(task, lambda done, total: None)

    def missed(rounds: int, **weights: float) -> float:
        edit = edited_identity(fit_text("rece", task, rounds=rounds, **weights))
        found = recovered(c, edit, moment, 0.1)
        gaps = [(w @ edit) @ found.T - w @ c.T for w in before.values()]
        return float(sum(gap.square().sum() for gap in gaps) + 0.1 * found.square().sum())

    careful = [missed(rounds, round_ridge=0.5, round_preserve=1.0) for rounds in range(5)]
    assert careful == sorted(careful) and careful[-1] > 1.5 * careful[0]
    assert missed(1) > careful[1]  # the authors' weights go further in one round


# SPEED


def mean_outer(rows: Tensor, others: Tensor) -> Tensor:
    return sum(torch.outer(a, b) for a, b in zip(rows, others, strict=True)) / len(rows)


def dense_speed(
    c: Tensor, there: Tensor, retain: Tensor, fixed: Tensor, *, threshold: float, r: float
) -> Tensor:
    """E, with every matrix of the paper written out."""
    values, vectors = torch.linalg.eigh(mean_outer(retain, retain))
    null = vectors[:, values < threshold]
    p, k = null @ null.T, fixed.T
    s = mean_outer(c, c)
    m = torch.linalg.inv(s @ p + r * EYE)
    q = EYE - m @ k @ torch.linalg.inv(k.T @ p @ m @ k) @ k.T @ p
    return EYE + (mean_outer(there, c) - s) @ p @ q @ m


@pytest.mark.parametrize("name", WITH_RETAIN)
@pytest.mark.parametrize(("threshold", "regularisation"), [(0.1, 1.0), (4.0, 0.05), (1e9, 1.0)])
def test_speed_is_the_published_edit_of_every_layer(name, threshold, regularisation):
    task = TASKS[name]
    c, there = last(task.forget), last(task.anchor)
    fixed = invariants(task.empty.vectors[0])
    eraser = beyond("speed", task, threshold=threshold, regularisation=regularisation)

    def wanted(layer: str, role: str, w: Tensor) -> Tensor:
        kept = influenced(w, c, there, last(task.retain))
        return w @ dense_speed(c, there, kept, fixed, threshold=threshold, r=regularisation)

    assert {role for _, role in weights(task, eraser)} == {"values"}
    assert_edits(task, eraser, wanted)


def test_speed_keeps_the_retained_and_the_fixed_vectors_exactly():
    task = TASKS["usual"]
    c, there, kept = last(task.forget), last(task.anchor), last(task.retain)
    fixed = invariants(task.empty.vectors[0])
    left, right = speed_factors(c, there, kept, fixed, threshold=1e-9, regularisation=1.0)
    assert (c @ right.T @ left.T).norm() > 1e-2 * c.norm()
    for vectors in (kept, fixed):
        assert (vectors @ right.T @ left.T).norm() < 1e-10 * vectors.norm()
    eraser = fit_text("speed", task)
    assert_still(task, eraser, fixed)


def test_speed_at_its_limits():
    task = TASKS["usual"]
    assert_still(task, beyond("speed", task, regularisation=1e7))
    everywhere = encoded(*(f"word{number}" for number in range(60)))
    crowded = replace(task, retain=everywhere)
    assert_still(crowded, fit_text("speed", crowded, threshold=1e-9))


def test_speed_keeps_those_retained_prompts_that_the_edit_would_change_most():
    task = TASKS["usual"]
    c, there = last(task.forget), last(task.anchor)
    retain = encoded(*(f"word{number}" for number in range(60))).last
    w = task.model.weight_of(NARROW, "values").double()
    s = mean_outer(c, c)
    change = w @ (mean_outer(there, c) - s) @ torch.linalg.inv(EYE + s)

    def sizes(vectors: Tensor) -> Tensor:
        return torch.stack([(change @ each).norm() for each in vectors])

    chosen = retain[sizes(retain) >= sizes(retain).mean()]
    squares = sizes(retain).square()
    assert len(chosen) > int((squares >= squares.mean()).sum())  # norms, not their squares
    found = influenced(w, c, there, retain)
    assert 0 < len(chosen) < len(retain)
    assert torch.equal(found[: len(chosen)], chosen)
    copies = found[len(chosen) :]
    assert 0 < len(copies) < COPIES * len(chosen)
    least = torch.linalg.svd(w, full_matrices=False)[2][-1]
    for copy in copies:
        noise = copy - chosen
        along = (noise @ least).abs() / noise.norm(dim=1)
        assert along.max() == pytest.approx(1)
        assert (noise.norm(dim=1) > 1e-3).all()


def test_speed_holds_the_start_token_and_three_centres_of_the_padding():
    (empty,) = encoded("").vectors
    start, *centres = invariants(empty)
    assert torch.equal(start, empty[0]) and len(centres) == 3
    owner = torch.cdist(empty[1:], torch.stack(centres)).argmin(dim=1)
    for number, centre in enumerate(centres):
        assert torch.allclose(empty[1:][owner == number].mean(dim=0), centre)


# OCE


def dense_objective(
    w: Tensor, task: TextTask, rotation: float, general: float, preserve: float
) -> Tensor:
    """M, with projections by pseudoinverses and moments by sums."""
    concept, there = (w @ last(each).T for each in (task.forget, task.anchor))
    g, g_there = (each @ torch.linalg.pinv(each, rtol=1e-9) for each in (concept, there))
    pairs = zip(task.retain.vectors, task.retain.ends, strict=True)
    tokens = torch.cat([rows[: end + 1] for rows, end in pairs])
    kept = w @ last(task.retain).T
    turning = -rotation * g @ (torch.eye(len(w)).double() - g_there)
    return (
        turning
        + general * w @ mean_outer(tokens, tokens) @ w.T
        + preserve * kept @ kept.T
        + w @ w.T
    )


def polar(m: Tensor) -> Tensor:
    """U V^T as M (M^T M)^-1/2; its last column negated if it reflects."""
    values, vectors = torch.linalg.eigh(m.T @ m)
    turned = m @ vectors @ torch.diag(values**-0.5) @ vectors.T
    if torch.linalg.det(m) < 0:
        turned[:, -1] *= -1
    return turned


@pytest.mark.parametrize("name", WITH_RETAIN)
@pytest.mark.parametrize(
    ("rotation", "general", "preserve"),
    [(200.0, 1.0, 1.0), (5.0, 1.0, 0.0), (20.0, 4.0, 3.0), (300.0, 0.0, 0.1)],
)
def test_oce_turns_the_values_by_the_polar_factor(name, rotation, general, preserve):
    task = TASKS[name]
    eraser = fit_text("oce", task, rotation=rotation, general=general, preserve_values=preserve)
    objectives = [dense_objective(w, task, rotation, general, preserve) for w in values(task)]
    wanted = [polar(each) @ w for each, w in zip(objectives, values(task), strict=True)]
    after = edited(task, eraser)
    assert eraser.space == "activations" and all(which[1] == "values" for which in after)
    for found, expected, before in zip(after.values(), wanted, values(task), strict=True):
        assert (expected - before).norm() > 1e-2 * before.norm()
        assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("layer", LAYERS)
def test_oce_turns_what_the_entry_of_all_text_puts_out(layer):
    """Written as an edit of what enters: R W = W E, be W wider than the text or narrower."""
    task = TASKS["usual"]
    model = replace(task.model, layers=(layer,), at_entry=True)
    eraser = fit_text("oce", replace(task, model=model), rotation=20.0, preserve_values=1.0)
    assert eraser.space == "text"
    weight = task.model.weight_of(layer, "values").double()
    wanted = turned(task, layer, 20.0) @ weight
    found = weight @ eraser.layers[layer].to(torch.float64).P
    assert (wanted - weight).norm() > 1e-2 * weight.norm()
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


def values(task: TextTask) -> list[Tensor]:
    return [task.model.weight_of(layer, "values").double() for layer in task.model.layers]


def turned(task: TextTask, layer: str, rotation: float, preserve: float = 1.0) -> Tensor:
    w = task.model.weight_of(layer, "values").double()
    ordinary = mean_outer(task.retain.read, task.retain.read)
    parts = (last(each) @ w.T for each in (task.forget, task.anchor, task.retain))
    return oce_rotation(w, *parts, ordinary, rotation=rotation, general=1.0, preserve=preserve)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rotation", [0.3, 200.0])
def test_oce_is_a_rotation(layer, rotation):
    found = turned(TASKS["usual"], layer, rotation)
    assert torch.allclose(found.T @ found, torch.eye(LAYERS[layer]).double(), atol=1e-10)
    assert torch.linalg.det(found) == pytest.approx(1)


@pytest.mark.parametrize("layer", LAYERS)
def test_no_other_rotation_fits_the_objective_of_oce_better(layer):
    task, d = TASKS["usual"], LAYERS[layer]
    found = turned(task, layer, 0.3)
    w = task.model.weight_of(layer, "values").double()
    objective = dense_objective(w, task, 0.3, 1.0, 1.0)
    best = torch.trace(found.T @ objective)
    assert best == pytest.approx(float(torch.linalg.svdvals(objective).sum()))
    for seed in range(9):
        skew = random(d, d, seed=seed)
        near = torch.matrix_exp(0.1 * (skew - skew.T)) @ found
        assert torch.trace(near.T @ objective) < best


def test_oce_at_its_limits():
    task = TASKS["usual"]
    assert_still(task, fit_text("oce", task, rotation=1e-6))
    kept = beyond("oce", task, rotation=0.1, preserve_values=1e6)
    assert changes(task, kept) > 1e-4
    few = replace(task, retain=encoded("a dog", "a fox"))
    assert_still(few, beyond("oce", few, rotation=0.1, preserve_values=1e7), last(few.retain))


WIDE = {"middle_block.1.transformer_blocks.0.attn2": 32}


def test_oce_leaves_a_layer_that_is_wider_than_the_text_alone_if_the_anchor_is_the_concept():
    for seed in range(6):
        task = replace(ITSELF, model=text_model(WIDE, seed))
        assert_still(task, fit_text("oce", task))


def test_oce_turns_nothing_in_a_wide_layer_that_no_value_reaches():
    task = replace(TASKS["usual"], model=text_model(WIDE))
    (rank,) = fit_text("oce", task).ranks.values()
    assert rank <= WIDTH


# Double Projections


def dense_double_projections(w: Tensor, task: TextTask) -> Tensor:
    """Token after token on the weights so far, of one prompt a concept."""
    if task.retain is not None:
        frame, sizes, _ = torch.linalg.svd(words(task.retain).T, full_matrices=True)
        free = frame[:, int((sizes > 1e-6).sum()) :]
    for number in names(task.forget.anchors):
        rows, end = task.forget.vectors[number], task.forget.ends[number]
        anchor, stop = task.anchor.vectors[number], task.anchor.ends[number]
        s = (anchor[1:stop] if stop > 1 else anchor[1:2]).T
        for c in rows[1:end]:
            there = s @ torch.linalg.pinv(s.T @ s) @ s.T @ c if s.shape[1] > 1 else s[:, 0]
            direction = c if task.retain is None else free @ (free.T @ c)
            size = direction @ direction
            if size >= 1e-10:
                w = w + torch.outer(w @ (there - c), direction) / size
    return w


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_double_projections_edits_token_after_token(task):
    eraser = fit_text("double projections", task)
    assert_edits(task, eraser, lambda *at: dense_double_projections(at[2], task))


def test_double_projections_edits_the_bare_name_of_every_concept_or_else_the_shortest_prompt():
    phrased = AnchorSet.phrased(["a cat", "tower"], ["a photo of {}", "{}", "{}s"])
    assert names(phrased) == [1, 4]
    nameless = AnchorSet(
        tuple(Anchor(prompt, "Rex") for prompt in ("a photo of Rex", "big Rex", "art of Rex"))
    )
    assert names(nameless + phrased) == [1, 4, 7]
    shorter = AnchorSet((Anchor("Gogh", "Van Gogh"), Anchor("Van Gogh", "Van Gogh")))
    assert names(shorter) == [1]  # the bare name, though another prompt is shorter
    alone, phrasings = text_task(("cat",)), text_task(("cat", "a photo of a cat", "one small cat"))
    one, other = (edited(task, fit_text("double projections", task)) for task in (alone, phrasings))
    for which, weight in one.items():
        assert torch.equal(weight, other[which])


def test_double_projections_retains_names_and_prompts_written_by_hand():
    dog = ("a dog", "a photo of a dog", "a drawing of a dog")
    phrased = replace(
        encoded(*dog),
        anchors=AnchorSet.phrased(["a dog"], ["{}", "a photo of {}", "a drawing of {}"]),
    )
    assert kept(phrased).prompts == ("a dog",)
    by_hand = encoded(*dog)
    assert kept(by_hand).prompts == dog
    task = text_task(("cat",))
    one, other = (
        fit_text("double projections", replace(task, retain=each))
        for each in (phrased, encoded("a dog"))
    )
    assert one.fingerprint == other.fingerprint
    every = fit_text("double projections", replace(task, retain=by_hand))
    assert every.fingerprint != one.fingerprint


def test_double_projections_leaves_retained_tokens_alone():
    task = TASKS["usual"]
    assert_still(task, fit_text("double projections", task), words(task.retain))


@pytest.mark.parametrize("anchor", ["animal", "an old animal", ""])
def test_double_projections_sends_the_concept_to_its_proxy(anchor):
    task = text_task(("cat",), (anchor,))
    token = task.forget.vectors[0][1]
    tokens = task.anchor.vectors[0][1 : max(task.anchor.ends[0], 2)]
    there = proxy(token, tokens)
    if len(tokens) == 1:
        assert torch.equal(there, tokens[0])
    else:
        across = torch.linalg.lstsq(tokens.T, token[:, None]).solution[:, 0]
        assert torch.allclose(there, across @ tokens)
    eraser = fit_text("double projections", task)
    after = edited(task, eraser)
    for which, before in weights(task, eraser).items():
        assert (before @ (there - token)).norm() > 0.1
        assert (after[which] @ token - before @ there).norm() < 1e-5 * (before @ there).norm()


def test_outside_is_orthogonal_to_every_retained_token():
    retain = words(encoded(*RETAIN))
    token = words(encoded("cat"))[0]
    outside = outside_of(retain)(token)
    assert outside.norm() > 0.1
    assert (retain @ outside).norm() < 1e-10
    assert torch.allclose(outside_of(retain)(retain[3]), 0 * token, atol=1e-10)
    assert torch.equal(outside_of(None)(token), token)


def test_double_projections_passes_over_shared_tokens_and_refuses_if_all_are():
    """The 'a' that begins prompts is one and the same vector."""
    one, other = text_task(("a cat",)), text_task(("a cat",), retain=("dog",))
    ranks = [set(fit_text("double projections", task).ranks.values()) for task in (one, other)]
    assert ranks == [{1}, {2}]
    with pytest.raises(FitError, match="Use fewer retain prompts"):
        fit_text("double projections", text_task(retain=(*RETAIN, *FORGET)))


# TRCE

PLACES = {"start_weight": 0.5, "end_weight": 2.0, "padding_weight": 0.1, "name_weight": 3.0}


def dense_trce(
    w: Tensor,
    task: TextTask,
    *,
    start_weight: float = 0.0,
    end_weight: float = 1.0,
    padding_weight: float = 0.0,
    name_weight: float = 0.0,
    caption_weight: float = 0.01,
) -> Tensor:
    """The authors' two sums on the weight of a layer, prompt after prompt, place after place."""
    left, right = torch.zeros_like(w), torch.zeros(WIDTH, WIDTH, dtype=torch.float64)

    def add(weight: float, c: Tensor, there: Tensor) -> None:
        nonlocal left, right
        left = left + weight * torch.outer(w @ there, c)
        right = right + weight * torch.outer(c, c)

    n = len(task.forget.prompts)
    for number, (c, there) in enumerate(zip(task.forget.vectors, task.anchor.vectors, strict=True)):
        end, stop = task.forget.ends[number], task.anchor.ends[number]
        padding = len(c[end + 1 :])
        if task.forget.start == 1:
            add(start_weight / n, c[0], there[0])
        add(end_weight / n, c[end], there[stop])
        add(padding_weight * padding / n, c[-1], there[-1])
        add(name_weight / n, c[end - 1], there[-1])
    kept = [*task.ordinary.vectors, *(task.retain.vectors if task.retain else ())]
    for rows in kept:
        for token in rows:
            add(caption_weight / len(kept), token, token)
    floor = 1e-6 * right.trace() / WIDTH
    return (left + floor * w) @ torch.linalg.inv(right + floor * EYE)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"caption_weight": 1.0}, PLACES, {"end_weight": 0.0, "padding_weight": 1.0}],
    ids=["authors'", "careful", "every place", "padding alone"],
)
def test_trce_is_its_closed_form_in_every_layer(task, settings):
    eraser = fit_text("trce", task, **settings)
    assert_edits(task, eraser, lambda *at: dense_trce(at[2], task, **settings))


@pytest.mark.parametrize("preset", TEXT_METHODS["trce"].presets.values())
def test_trce_by_its_presets(preset):
    task = TASKS["usual"]
    eraser = fit_text("trce", task, **preset)
    assert_edits(task, eraser, lambda *at: dense_trce(at[2], task, **preset))


def without_start(vectors: TextVectors, length: int | None = None) -> TextVectors:
    """As T5 gives them, or without padding if `length` is 0."""
    ends = tuple(end - 1 for end in vectors.ends)
    stops = [LENGTH if length is None else end + 2 for end in ends]
    rows = tuple(rows[1:stop] for rows, stop in zip(vectors.vectors, stops, strict=True))
    return TextVectors(vectors.anchors, rows, ends, start=0)


def changed(task: TextTask, change: Callable[[TextVectors], TextVectors]) -> TextTask:
    names = ("forget", "anchor", "retain", "empty", "ordinary")
    return replace(task, **{name: change(getattr(task, name)) for name in names})


def test_trce_without_a_start_token_or_padding_uses_the_places_there_are():
    for length in (None, 0):
        task = changed(TASKS["usual"], lambda each, length=length: without_start(each, length))
        behind = [len(rows) - 1 for rows in task.forget.vectors]
        assert (tuple(behind) == task.forget.ends) == (length == 0)
        eraser = fit_text("trce", task, **PLACES)
        assert_edits(task, eraser, lambda *at, task=task: dense_trce(at[2], task, **PLACES))
        only = {**dict.fromkeys(PLACES, 0.0), "start_weight": 1.0}
        with pytest.raises(FitError, match="expected one above 0, of a token that this"):
            fit_text("trce", task, **only)


def test_trce_needs_a_place_and_something_to_keep():
    task = TASKS["usual"]
    with pytest.raises(FitError, match=r"start_weight, end_weight.* got none. Set end_weight to 1"):
        fit_text("trce", task, end_weight=0.0)
    with pytest.raises(FitError, match="retain: the method trce keeps ordinary captions"):
        fit_text("trce", replace(TASKS["no retain"], ordinary=None))
    named = replace(TASKS["no retain"], ordinary=encoded("A CAT on a mat"))
    with pytest.raises(FitError, match="retain: the method trce keeps ordinary captions"):
        fit_text("trce", named)


def test_trce_leaves_out_captions_that_name_the_concept():
    task = TASKS["usual"]  # whose concept is called "a cat"
    usual = fit_text("trce", task)
    for extra, same in (("I saw a Cat there", True), ("I saw a cattle truck", False)):
        more = encoded(*task.ordinary.prompts, extra)
        found = fit_text("trce", replace(task, ordinary=more))
        assert (found.fingerprint == usual.fingerprint) == same


def test_trce_between_its_limits():
    task = TASKS["usual"]
    end = torch.stack([task.forget.end_of(n) for n in range(3)])
    there = torch.stack([task.anchor.end_of(n) for n in range(3)])
    assert_still(task, beyond("trce", task, caption_weight=1e12))
    moved = beyond("trce", task, caption_weight=0.0)
    after = edited(task, moved)
    for which, before in weights(task, moved).items():
        wanted = before @ there.T
        assert (wanted - before @ end.T).norm() > 0.1 * wanted.norm()
        assert (after[which] @ end.T - wanted).norm() < 1e-3 * wanted.norm()


def test_trce_leaves_what_no_prompt_reads():
    """Fewer captions than directions: the rest of the text's space stays, floor or not."""
    task = replace(TASKS["no retain"], ordinary=encoded("an apple"))
    seen = torch.cat([task.forget.end_of(n)[None] for n in range(3)] + [task.ordinary.vectors[0]])
    hidden = torch.linalg.svd(seen, full_matrices=True)[2][torch.linalg.matrix_rank(seen) :]
    assert len(hidden) >= 3
    eraser = fit_text("trce", task)
    assert changes(task, eraser) > 1e-2
    assert_still(task, eraser, hidden)


def test_the_captions_of_trce_are_ours_and_of_all_sorts():
    captions = TEXT_METHODS["trce"].captions
    assert len(captions) == len(set(captions)) > 30
    assert all(caption == caption.lower().strip() for caption in captions)


# Where all text enters


def at_entry(task: TextTask, layer: str) -> TextTask:
    """The same with one map that all text enters by, behind a text encoder like T5."""
    model = replace(task.model, layers=(layer,), at_entry=True)
    return replace(changed(task, without_start), model=model)


@pytest.mark.parametrize("layer", LAYERS)
def test_uce_at_the_entry_is_equation_7_of_one_matrix_at_the_last_word_s_token(layer):
    task = at_entry(TASKS["usual"], layer)
    rows = last(task.forget), last(task.anchor), last(task.retain)
    assert torch.equal(rows[0][0], TASKS["usual"].forget.vectors[0][2])  # "cat" of "a cat"
    eraser = fit_text("uce", task)
    weight = task.model.weight_of(layer, "values").double()
    found = weight @ eraser.layers[layer].to(torch.float64).P
    wanted = dense_uce(weight, *rows)
    assert eraser.space == "text" and list(eraser.layers) == [layer]
    assert (wanted - weight).norm() > 1e-2 * weight.norm()
    assert (found - wanted).norm() < 2e-6 * wanted.norm()


@pytest.mark.parametrize("layer", LAYERS)
def test_oce_by_its_preset_for_flux_is_the_authors_objective(layer):
    """Their demonstration: e = 1000, g = 10, p = 5, l = 10, on the map that the text enters by."""
    task = at_entry(TASKS["usual"], layer)
    eraser = fit_text("oce", task, **TEXT_METHODS["oce"].presets["Flux"])
    w = task.model.weight_of(layer, "values").double()
    concept, there, kept = (last(each) @ w.T for each in (task.forget, task.anchor, task.retain))
    g, g_there = (each.T @ torch.linalg.pinv(each.T, rtol=1e-9) for each in (concept, there))
    tokens = torch.cat(
        [rows[: end + 1] for rows, end in zip(task.retain.vectors, task.retain.ends, strict=True)]
    )
    objective = -1000 * g @ (torch.eye(len(w)).double() - g_there)
    objective = objective + 10 * w @ mean_outer(tokens, tokens) @ w.T
    objective = objective + 5 * kept.T @ kept + 10 * w @ w.T
    wanted = polar(objective) @ w
    found = w @ eraser.layers[layer].to(torch.float64).P
    assert (wanted - w).norm() > 1e-2 * w.norm()
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


# Token ridge


def dense_token_ridge(task: TextTask, keep: float, damping: float, overshoot: float) -> Tensor:
    """E, from sums over tokens and the means at their places."""

    def read(vectors: TextVectors) -> list[Tensor]:
        pairs = zip(vectors.vectors, vectors.ends, strict=True)
        return [rows[1 : end + 1] for rows, end in pairs]

    forget, retain, anchor = read(task.forget), read(task.retain), read(task.anchor)
    replaced = task.anchor.prompts[0] != ""
    once = [anchor[task.anchor.prompts.index(each)] for each in sorted(set(task.anchor.prompts))]
    every, kept = torch.cat(forget), torch.cat([*retain, *(once if replaced else [])])
    change = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for number, rows in enumerate(forget):
        others = [anchor[number]] if replaced else retain
        for place, row in enumerate(rows):
            back = len(rows) - place
            there = [each[-back] for each in others if len(each) >= back]
            if not there:  # the first words of the longest
                there = [each[0] for each in others if len(each) == max(map(len, others))]
            change += torch.outer(sum(there) / len(there) - row, row) / len(every)
    floor = damping * kept.square().sum() / kept.numel()
    moment = every.T @ every / len(every) + keep * kept.T @ kept / len(kept) + floor * EYE
    return EYE + overshoot * change @ torch.linalg.inv(moment)


@pytest.mark.parametrize("name", WITH_RETAIN)
@pytest.mark.parametrize(
    ("keep", "damping", "overshoot"), [(10.0, 0.3, 1.3), (0.0, 1.0, 1.0), (100.0, 0.01, 2.0)]
)
def test_token_ridge_is_least_squares_at_every_place(name, keep, damping, overshoot):
    settings = {"keep": keep, "damping": damping, "overshoot": overshoot}
    task = TASKS[name]
    eraser = fit_text("token ridge", task, **settings)
    dense = dense_token_ridge(task, **settings)
    assert_edits(task, eraser, lambda *at: at[2] @ dense)


def test_token_ridge_of_a_prompt_longer_than_all_it_keeps():
    """Its first words go where the first words of the longest are, not nowhere."""
    long = ("one very small and furry cat",)
    task = text_task(long, ("",), retain=("a dog", "the red fox"))
    dense = dense_token_ridge(task, 1.0, 0.1, 1.0)
    eraser = fit_text("token ridge", task, keep=1.0, damping=0.1, overshoot=1.0)
    assert_edits(task, eraser, lambda *at: at[2] @ dense)
    first = task.forget.vectors[0][1]
    there = task.retain.vectors[1][1]
    assert (dense @ first - there).norm() < 0.5 * (first - there).norm()


def test_token_ridge_with_a_high_keep_leaves_the_neighbours():
    task = TASKS["usual"]
    eraser = fit_text("token ridge", task, keep=1e3, damping=1e-6, overshoot=1.0)
    dense = eraser.layers[NARROW].to(torch.float64).P
    words = task.retain.words
    assert (dense @ words.T - words.T).norm() < 0.05 * words.norm()
    with pytest.raises(FitError, match="retain: the method token ridge keeps"):
        fit_text("token ridge", TASKS["no retain"])


# All of them


def test_token_ridge_sends_a_concept_to_its_anchor_in_the_same_phrasing():
    """Little keeps it back here: the last word reads as the anchor's, and so does the end."""
    anchor = tuple(each.replace("cat", "horse") for each in FORGET)
    task = text_task(anchor=anchor)
    dense = fit_text("token ridge", task, keep=1e-6, damping=1e-8, overshoot=1.0)
    layer = dense.layers[NARROW].to(torch.float64)
    for there, one, other in zip(range(3), task.forget.vectors, task.anchor.vectors, strict=True):
        end = task.forget.ends[there]
        for place in (end - 1, end):
            gap = (one[place] - other[place]).norm()
            assert (layer(one[place]) - other[place]).norm() < 0.1 * gap
    assert dense.provenance.settings["anchor"] == ", ".join(anchor)
    kept = fit_text("token ridge", task, keep=1e3, damping=1e-6, overshoot=1.0)
    words = task.anchor.words
    changed = kept.layers[NARROW].to(torch.float64)(words) - words
    assert changed.norm() < 0.05 * words.norm()


@pytest.mark.parametrize("method", sorted(TEXT_METHODS.keys() - {"cure", "rece"}))
def test_a_concept_that_is_its_own_anchor_is_left_alone(method):
    """CURE has no anchor, and RECE sends shrunken vectors back to their size."""
    task = text_task(("cat",), ("cat",)) if method == "double projections" else ITSELF
    eraser = fit_text(method, task)
    assert_still(task, eraser)
    assert max(eraser.provenance.contribution.values(), default=0) < 1e-9
    assert changes(TASKS["usual"], fit_text(method, TASKS["usual"])) > 1e-2


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_the_record_says_what_was_fitted(method):
    task = TASKS["two concepts"]
    told = []
    everything = {"erase": 2.0, "alpha": 3.0, "rounds": 1, "threshold": 0.2, "rotation": 10.0}
    eraser = fit_text(method, task, lambda *now: told.append(now), **everything)
    made = eraser.provenance
    own = [each.name for each in TEXT_METHODS[method].settings]
    assert made.method == method and made.edit == TEXT_METHODS[method].edit
    chosen_by_itself = {"damping", "overshoot", "reach", "moved"} if "calibrated" in method else {}
    assert made.settings.keys() == {*own, *chosen_by_itself, "anchor"}
    assert {name: made.settings[name] for name in everything if name in own} == {
        name: value for name, value in everything.items() if name in own
    }
    assert made.settings["anchor"] == "an animal, animal, house"
    assert fit_text(method, TASKS["usual"]).provenance.settings["anchor"] == "an animal"
    assert made.concepts == ("a cat", "a tall tower") and made.retain.prompts == RETAIN
    assert made.model == task.model.identity
    assert eraser.layers.keys() == LAYERS.keys()
    assert bool(made.contribution) == (eraser.space == "activations")
    assert told[-1][0] == told[-1][1] and [done for done, _ in told] == [*range(1, len(told) + 1)]


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_erasers_are_as_wide_as_what_they_multiply(method):
    eraser = fit_text(method, TASKS["usual"])
    widths = LAYERS if method == "oce" else dict.fromkeys(LAYERS, WIDTH)
    assert eraser.space == ("activations" if method == "oce" else "text")
    assert eraser.widths == widths
    for layer in eraser.layers.values():
        assert layer.proj_left.dtype == layer.rows.dtype == torch.float32
        assert layer.rank <= layer.width


@pytest.mark.parametrize(
    "method", ["uce", "cure", "rece", "double projections", "token ridge", "trce"]
)
def test_what_is_the_same_in_all_layers_is_held_once(method):
    eraser = fit_text(method, TASKS["usual"])
    assert len({id(layer) for layer in eraser.layers.values()}) == 1


def test_rows_are_the_forget_tokens_second_moment():
    c = last(TASKS["usual"].forget)
    rows = fit_text("uce", TASKS["usual"]).layers[NARROW].rows.double()
    assert torch.allclose(rows.T @ rows, c.T @ c / len(c), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("uce", {"erase": 0.0}),
        ("uce", {"erase": float("nan")}),
        ("uce", {"preserve": -0.1}),
        ("uce", {"ridge": 0.0}),
        ("uce", {"tokens": "all"}),
        ("cure", {"alpha": 0.9}),
        ("cure", {"alpha": float("inf")}),
        ("rece", {"ridge": 0.0}),
        ("rece", {"rounds": -1}),
        ("rece", {"rounds": 1.5}),
        ("rece", {"recovery": 0.0}),
        ("speed", {"threshold": 0.0}),
        ("speed", {"regularisation": 0.0}),
        ("oce", {"rotation": 0.0}),
        ("oce", {"preserve_values": -1.0}),
        ("oce", {"general": -1.0}),
        ("rece", {"round_ridge": 0.0}),
        ("trce", {"caption_weight": -0.1}),
        ("trce", {"end_weight": -1.0}),
        ("token ridge", {"keep": -1.0}),
        ("token ridge", {"damping": 0.0}),
        ("token ridge", {"overshoot": 0.0}),
    ],
)
def test_settings_outside_their_range_are_refused(method, settings):
    (name,) = settings
    with pytest.raises(FitError, match=f"{name}: expected"):
        fit_text(method, TASKS["usual"], **settings)


def test_unknown_methods_and_settings_are_refused():
    with pytest.raises(FitError, match=r"method: expected one of .*uce, cure.*'ucce'"):
        fit_text("ucce", TASKS["usual"])
    with pytest.raises(FitError, match=r"Unknown settings \['apha'\]: expected some of \['alpha'"):
        fit_text("cure", TASKS["usual"], apha=2.0)


@pytest.mark.parametrize("method", ["speed", "oce"])
def test_methods_that_need_retained_prompts_say_so(method):
    with pytest.raises(FitError, match=f"retain: the method {method} keeps"):
        fit_text(method, TASKS["no retain"])


# Encoded prompts


def test_the_parts_of_an_encoding():
    both = encoded("a small cat", "")
    first, second = both.vectors
    assert both.ends == (4, 1) and both.width == WIDTH
    assert torch.equal(both.last, torch.stack([first[3], second[0]]))
    assert torch.equal(both.words, first[1:4])
    assert torch.equal(both.read, torch.cat([first[:5], second[:2]]))
    assert [len(tail) for tail in both.tails] == [LENGTH - 3, LENGTH]
    assert torch.equal(both.tails[0], first[3:])


def test_pairs_are_as_long_as_their_shorter_half():
    one, other = [random(n, WIDTH, seed=n) for n in (5, 2)], [random(4, WIDTH, seed=1)] * 2
    here, there = paired(one, other)
    assert torch.equal(here, torch.cat([one[0][:4], one[1]]))
    assert torch.equal(there, torch.cat([other[0], other[1][:2]]))


def test_one_anchor_is_that_of_all_prompts():
    anchor = repeated(encoded("animal"), 3)
    assert anchor.prompts == ("animal",) * 3 and anchor.ends == (2, 2, 2)
    assert torch.equal(anchor.last, encoded("animal").last.expand(3, WIDTH))
    assert repeated(encoded("one", "two"), 3).prompts == ("one", "two")


def test_bad_encodings_are_refused_with_the_prompt():
    good = encoded("a cat")
    (rows,) = good.vectors
    for value in (float("nan"), float("inf")):
        bad = rows.clone()
        bad[3, 3] = value
        with pytest.raises(FitError, match="'a cat': its encoding holds NaN or infinity"):
            replace(good, vectors=(bad,))
    for ends in ((0,), (LENGTH,)):
        with pytest.raises(FitError, match=f"'a cat': expected vectors .* and end {ends[0]}"):
            replace(good, ends=ends)
    with pytest.raises(FitError, match=r"got shape \(20,\)"):
        replace(good, vectors=(rows[0],))
    with pytest.raises(FitError, match="at least one prompt"):
        TextVectors(AnchorSet(), (), ())


def test_a_task_needs_an_anchor_for_every_prompt_and_one_encoder():
    with pytest.raises(FitError, match=r"anchor: expected .*\(3\), got 2"):
        text_task(anchor=("an animal", "animal"))
    task = TASKS["usual"]
    narrow = TextVectors(AnchorSet.written([[""]]), (torch.zeros(LENGTH, WIDTH - 1),), (1,))
    for part in ("retain", "empty"):
        with pytest.raises(FitError, match="one text encoder"):
            replace(task, **{part: narrow})


def test_without_a_start_token_the_empty_prompt_is_its_end_token():
    """As T5 gives them: words, end, padding."""
    anchors = AnchorSet.written([["a cat", ""]])
    rows = random(2, 5, WIDTH, seed=0)
    found = TextVectors(anchors, tuple(rows), (2, 0), start=0)
    assert torch.equal(found.last, torch.stack([rows[0, 1], rows[1, 0]]))
    assert torch.equal(found.words, rows[0, :2])
    assert torch.equal(found.words_of(1), rows[1, :0])
    assert torch.equal(found.end_of(1), rows[1, 0])
    assert torch.equal(found.read, torch.cat([rows[0, :3], rows[1, :1]]))
    assert [len(each) for each in found.tails] == [4, 5]
    assert found.chosen([1]).start == 0 and repeated(found.chosen([1]), 3).start == 0
    with pytest.raises(FitError, match="an end token from 1 on"):
        TextVectors(anchors, tuple(rows), (2, 0))
