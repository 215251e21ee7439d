"""Every default of the graph's nodes, in one place.

They are the settings that measured best on the development concepts of the small trained model
(`tests/world/`); the README's table shows the measurement.
"""

from typing import NamedTuple


class Trajectory(NamedTuple):
    """How a capture samples. The field defaults are the nodes' defaults."""

    steps: int = 16
    """Length of the sampling schedule."""

    run_steps: int = 5
    """How many of these steps are run, from the noisy end."""

    latents: int = 3
    """Starting latents per prompt."""

    cfg: float = 4.0
    """Guidance scale. 1 runs without the empty prompt, at half the cost."""

    seed: int = 0
    width: int = 512
    """Pixels."""

    height: int = 512
    """Pixels."""

    sampler_name: str = "euler"
    scheduler: str = "normal"


class Fitting(NamedTuple):
    """Settings of every method. Each method reads its own."""

    forget_energy: float = 0.9999
    """PURE: share of the forget activations' energy that is projected out, in (0, 1]."""

    retain_energy: float = 0.3
    """PURE: share of the retain activations' energy that is protected, in (0, 1]."""

    keep: float = 10.0
    """Ridge: lambda, weight of keeping the neighbours."""

    damping: float = 0.3
    """Ridge: mu, weight of changing nothing else."""

    overshoot: float = 1.8
    """Ridge: how far towards the neighbours' mean the concept is sent, 1 is there."""

    reach: float = 0.0
    """Mosaic: how far towards the neighbours the concept is sent, 1 is their mean; 0 leaves it to
    the method."""

    shrinkage: float = 0.01
    """LEACE: share of the covariance that is replaced by a multiple of the identity."""


class TextFitting(NamedTuple):
    """Settings of the text-side methods, as their authors have them. Each reads its own."""

    erase: float = 1.0
    """UCE, RECE: e, weight of the concept."""

    preserve: float = 1.0
    """UCE, RECE, OCE: p, weight of the retain prompts."""

    ridge: float = 0.5
    """UCE, RECE: l, weight of changing nothing."""

    tokens: str = "last"
    """UCE, RECE: which vectors of a prompt are moved."""

    alpha: float = 2.0
    """CURE: a."""

    rounds: int = 5
    """RECE."""

    recovery: float = 0.1
    """RECE: m."""

    threshold: float = 0.1
    """SPEED: from which singular value a direction is retained."""

    regularisation: float = 1.0
    """SPEED: r."""

    rotation: float = 200.0
    """OCE: e / l."""


METHOD = "ridge"
TEXT_METHOD = "uce"
STRENGTH = 1.0
