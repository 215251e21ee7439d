"""What every method needs around its mathematics."""

from __future__ import annotations

from datetime import datetime, timezone

from torch import Tensor

from .. import __version__
from ..activations import Activations
from ..eraser import Edit, Provenance
from ..errors import FitError


def require_comparable(forget: Activations, retain: Activations | None) -> None:
    """Raise FitError unless forget and retain rows were captured in the same way."""
    if retain is None:
        return
    differences = forget.settings.differences(retain.settings)
    if differences:
        raise FitError(
            "forget and retain have to be captured with the same settings from the same model. "
            "They differ in (forget / retain): "
            + "; ".join(differences)
            + ". Use the same values in both capture nodes."
        )
    if forget.widths != retain.widths:
        raise FitError(
            f"forget has {len(forget.rows)} layers and retain {len(retain.rows)}, or their "
            "widths differ: capture both from the same model."
        )


def neighbour_means(forget: Activations, retain: Activations, layer: str) -> Tensor:
    """For each forget row, the mean over the retain prompts at the same latent and step.

    Returns:
        T_F of shape (n_F, d), float64.
    """
    means = retain.grid(layer).double().mean(dim=0)
    return means.expand(len(forget.prompts), *means.shape).flatten(0, 2)


def provenance(
    method: str,
    settings: dict[str, float | str],
    edit: Edit,
    forget: Activations,
    retain: Activations | None,
) -> Provenance:
    """The record that goes with a freshly fitted eraser."""
    return Provenance(
        method=method,
        settings=settings,
        forget=forget.prompts,
        retain=() if retain is None else retain.prompts,
        edit=edit,
        source_name=forget.settings.source_name,
        source_fingerprint=forget.settings.source_fingerprint,
        source_sketch=forget.settings.source_sketch,
        created=datetime.now(timezone.utc).date().isoformat(),
        plugin_version=__version__,
    )
