"""Calibration against leaving out and fitting again, and what must not change it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pure_core.methods.calibration import DAMPINGS, FARTHEST, MOST, Groups, calibrate
from pure_core.methods.least_squares import least_squares_factors

WIDTH, PHRASINGS, NEIGHBOURS, ROWS = 10, 4, 5, 6
BALANCE = 4.0
ALWAYS = torch.ones(1, WIDTH, dtype=torch.float64)


def groups(width: int = WIDTH, seed: int = 0, noise: float = 0.3) -> Groups:
    """Neighbours that differ in a few ways, and a concept that differs from all in one more."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    common, concept, ways = random(width), 2 * random(width), random(NEIGHBOURS, width)
    phrasings = random(PHRASINGS, ROWS, width)
    others = common + phrasings[:, None] + ways[:, None]
    others = others + noise * random(PHRASINGS, NEIGHBOURS, ROWS, width)
    forget = common + phrasings + concept + noise * random(PHRASINGS, ROWS, width)
    kept = list(others.transpose(0, 1).flatten(1, 2))
    return Groups(list(forget), list(others), kept, ALWAYS)


def mapped(given: Groups, change: Callable[[Tensor], Tensor]) -> Groups:
    sides = {
        name: [change(each) for each in getattr(given, name)]
        for name in ("forget", "others", "kept")
    }
    return replace(given, **sides, always=change(given.always))


def fitted(forget, others, kept, damping, overshoot=1.0) -> Tensor:
    """N of E = I - N, dense."""
    rows, targets = torch.cat(forget), torch.cat([each.mean(0) for each in others])
    left, right = least_squares_factors(
        rows, targets, torch.cat([*kept, ALWAYS]), BALANCE, damping, 1
    )
    return overshoot * left @ right


def left_out(given: Groups, damping: float) -> tuple[float, float, float]:
    """Reach, energy and moved, by fitting again without each group."""
    reach = energy = moved = gap = count = kept_count = 0.0
    forget, others, kept = (list(each) for each in (given.forget, given.others, given.kept))
    for number, (rows, stand_ins) in enumerate(zip(forget, others, strict=True)):
        rest = [number != each for each in range(len(forget))]
        n = fitted(
            *([e for e, keep in zip(each, rest, strict=True) if keep] for each in (forget, others)),
            kept,
            damping,
        )
        away, gone = rows - stand_ins.mean(0), rows @ n.T
        reach += float((away * gone).sum())
        energy += float(gone.square().sum())
        gap += float(away.square().sum())
        count += len(rows)
    for number, rows in enumerate(kept):
        rest = [each for each in range(len(kept)) if each != number]
        shown = [each[rest] for each in others] if given.shifting else others
        n = fitted(forget, shown, [kept[each] for each in rest], damping)
        moved += float((rows @ n.T).square().sum())
        kept_count += len(rows)
    return reach / gap, energy / gap, moved / kept_count / (gap / count)


@pytest.mark.parametrize("shifting", [True, False])
def test_it_is_what_fitting_again_without_each_group_finds(shifting):
    given = groups()
    if not shifting:
        becoming = [each[:1] for each in given.others]
        given = replace(given, others=becoming, shifting=False)
    by_hand = {each: left_out(given, each) for each in DAMPINGS}
    errors = {d: q / r**2 - 1 + BALANCE * m / r**2 for d, (r, q, m) in by_hand.items()}
    best = min(errors, key=errors.__getitem__)
    chosen = calibrate([given], BALANCE)
    reach, _, moved = by_hand[best]
    assert chosen.damping == best
    assert chosen.reach == pytest.approx(reach, rel=1e-6)
    assert chosen.overshoot == pytest.approx(1 / reach, rel=1e-6)
    assert chosen.moved == pytest.approx(moved**0.5 / reach, rel=1e-6)


def test_noisier_rows_want_more_damping_and_a_higher_balance_too():
    quiet, noisy = (calibrate([groups(noise=noise)], BALANCE) for noise in (0.1, 1.0))
    assert noisy.damping > quiet.damping
    assert noisy.reach < quiet.reach
    careful, bold = (calibrate([groups(noise=1.0)], each) for each in (100.0, 0.1))
    assert careful.damping > bold.damping
    assert careful.moved < bold.moved


def test_left_out_rows_reach_their_targets_in_the_mean():
    given = groups(noise=1.0)
    chosen = calibrate([given], BALANCE)
    assert chosen.reach < 0.95
    along = gap = 0.0
    for number, rows in enumerate(given.forget):
        rest = [each for each in range(len(given.forget)) if each != number]
        n = fitted(
            [given.forget[each] for each in rest],
            [given.others[each] for each in rest],
            list(given.kept),
            chosen.damping,
            chosen.overshoot,
        )
        away = rows - given.others[number].mean(0)
        along += float((rows @ n.T * away).sum())
        gap += float(away.square().sum())
    assert along / gap == pytest.approx(1)


def test_scale_rotation_and_repeated_rows_change_nothing():
    given, chosen = groups(), calibrate([groups()], BALANCE)
    turn, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))
    same = {
        "scaled": mapped(given, lambda rows: 10 * rows),
        "turned": mapped(given, lambda rows: rows @ turn),
        "every row twice": mapped(given, lambda rows: torch.cat([rows, rows], -2)),
    }
    for what, changed in same.items():
        again = calibrate([changed], BALANCE)
        assert again == pytest.approx(chosen, rel=1e-6), what


def test_blocks_share_the_choice_and_empty_ones_do_not_count():
    one, other = groups(), groups(seed=1, noise=2.0)
    together = calibrate([one, other], BALANCE)
    reaches = sorted(calibrate([each], BALANCE).reach for each in (one, other))
    assert reaches[0] < together.reach < reaches[1]
    nothing = mapped(one, torch.zeros_like)
    assert calibrate([one, nothing], BALANCE) == calibrate([one], BALANCE)
    assert calibrate([nothing], BALANCE).overshoot == 1


def test_a_single_phrasing_or_neighbour_is_measured_on_itself():
    given = groups()
    others = [each[:1] for each in given.others[:1]]
    alone = replace(given, forget=given.forget[:1], others=others, kept=given.kept[:1])
    chosen = calibrate([alone], BALANCE)
    n = fitted(alone.forget, alone.others, alone.kept, chosen.damping)
    away = alone.forget[0] - alone.others[0][0]
    reach = (alone.forget[0] @ n.T * away).sum() / away.square().sum()
    assert chosen.reach == pytest.approx(float(reach), rel=1e-6)
    moved = (alone.kept[0] @ n.T).square().mean() / away.square().mean()
    assert chosen.moved == pytest.approx(float(moved) ** 0.5 / float(reach), rel=1e-6)


def test_wide_rows_are_calibrated_in_their_leading_directions():
    given = groups(noise=1.0)
    frame, _ = torch.linalg.qr(torch.randn(30 * WIDTH, WIDTH, dtype=torch.float64))
    assert len(frame) > MOST
    chosen, wide = (
        calibrate([each], BALANCE) for each in (given, mapped(given, lambda rows: rows @ frame.T))
    )
    # tau is a mean over the width: of 30 times as many, it is a thirtieth
    assert DAMPINGS.index(wide.damping) == DAMPINGS.index(chosen.damping) + 3
    assert wide.reach == pytest.approx(chosen.reach, abs=0.02)


def test_a_damping_that_would_need_too_much_scaling_is_not_chosen():
    """A neighbour that looks like the concept is moved when left out, whatever the damping."""
    given, generator = groups(), torch.Generator().manual_seed(0)
    with_twin = [
        torch.cat([each, rows[None]]) for rows, each in zip(given.forget, given.others, strict=True)
    ]
    noise = [torch.randn(each.shape, dtype=each.dtype, generator=generator) for each in with_twin]
    others = [each + 0.3 * more for each, more in zip(with_twin, noise, strict=True)]
    kept = list(torch.stack(others).transpose(0, 1).flatten(1, 2))
    near = replace(given, others=others, kept=kept)
    by_hand = {each: left_out(near, each) for each in DAMPINGS}
    errors = {d: (q + BALANCE * m) / r**2 for d, (r, q, m) in by_hand.items()}
    unlimited = min(errors, key=errors.__getitem__)
    assert by_hand[unlimited][0] < 1 / FARTHEST  # else this shows nothing
    chosen = calibrate([near], BALANCE)
    assert chosen.reach * chosen.overshoot == pytest.approx(1)
    assert chosen.overshoot <= FARTHEST


def test_an_eraser_that_does_not_carry_over_is_not_scaled_without_limit():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, WIDTH, dtype=torch.float64, generator=generator)
    others = 5 * torch.randn(3, 6, 4, WIDTH, dtype=torch.float64, generator=generator)
    kept = list(others.transpose(0, 1).flatten(1, 2))
    given = Groups(list(noise), list(others), kept, ALWAYS)
    chosen = calibrate([given], 100.0)
    assert chosen.overshoot == FARTHEST and chosen.reach < 1 / FARTHEST
