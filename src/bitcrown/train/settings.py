"""The options of training: one row each, from which the command line and its help are made.

``method`` chooses the loss. With ``kappa`` the share of the natural loss and
``w = certified_weight``,

    loss = kappa natural + (1 - kappa) (w certified + (1 - w) adversarial),

where ``natural`` has kappa = 1, ``certified`` w = 1, ``adversarial`` w = 0 and ``mixed`` the given
weight. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any

from bitcrown.errors import SettingsError
from bitcrown.settings import Option

METHODS = ("natural", "adversarial", "certified", "mixed")
TRAIN_OPTIONS = (
    Option("method", "mixed", "which loss", choices=METHODS),
    Option("epochs", 20, "passes over the data", low=1, high=100_000),
    Option("batch", 128, "images a step", low=2, high=65_536),
    Option("learning_rate", 1e-3, "largest step of Adam", low=0.0, high=1.0),
    Option(
        "learning_schedule",
        "cosine",
        "how it falls after the warm-up",
        choices=("cosine", "steps", "constant"),
    ),
    Option("warm_up", 0.02, "share of the run in which the learning rate rises", low=0.0, high=1.0),
    Option("weight_decay", 0.0, "weight decay (decoupled)", low=0.0, high=1.0),
    Option(
        "clip", 8.0, "largest norm of a gradient; longer ones are scaled down", low=1e-6, high=1e9
    ),
    Option("train_eps_factor", 1.0, "training goes up to this multiple of eps", low=0.1, high=10.0),
    Option(
        "eps_schedule",
        "smooth",
        "how the training eps grows",
        choices=("smooth", "linear", "constant"),
    ),
    Option(
        "eps_start",
        0.05,
        "share of the run after which the training eps begins to grow",
        low=0.0,
        high=1.0,
    ),
    Option("eps_end", 0.5, "share of the run after which it is full", low=0.0, high=1.0),
    Option("kappa_start", 1.0, "share of the natural loss while eps is zero", low=0.0, high=1.0),
    Option("kappa_end", 0.0, "share of the natural loss at full eps", low=0.0, high=1.0),
    Option(
        "beta_end",
        1.0,
        "share of CROWN (the rest: interval) in the last bound at full eps",
        low=0.0,
        high=1.0,
    ),
    Option(
        "certified_weight", 0.5, "share of the certified loss in a mixed one", low=0.0, high=1.0
    ),
    Option(
        "fusion",
        "auto",
        "one bound of the loss, or one of each margin",
        choices=("auto", "on", "off"),
    ),
    Option("attack_steps", 3, "PGD steps of the adversarial loss", low=1, high=1000),
    Option("padding", 4, "pixels of padding for random crops; 0: none", low=0, high=64),
    Option("flip", "on", "mirror half of the images", choices=("on", "off")),
    Option(
        "precision",
        "full",
        "mixed: values at points in bfloat16, and TF32 on CUDA",
        choices=("full", "mixed"),
    ),
    Option(
        "device",
        "auto",
        "where to train; auto takes CUDA if there is one",
        choices=("auto", "cpu", "cuda"),
    ),
    Option("seed", 0, "seed of weights, order, augmentation and attacks", low=0, high=2**31 - 1),
)


@dataclass(frozen=True)
class TrainSettings:
    """See ``TRAIN_OPTIONS`` for the ranges; ``eps`` is in units of images in [0, 1]. Raises
    ``SettingsError``."""

    eps: float
    method: str = "mixed"
    epochs: int = 20
    batch: int = 128
    learning_rate: float = 1e-3
    learning_schedule: str = "cosine"
    warm_up: float = 0.02
    weight_decay: float = 0.0
    clip: float = 8.0
    train_eps_factor: float = 1.0
    eps_schedule: str = "smooth"
    eps_start: float = 0.05
    eps_end: float = 0.5
    kappa_start: float = 1.0
    kappa_end: float = 0.0
    beta_end: float = 1.0
    certified_weight: float = 0.5
    fusion: str = "auto"
    attack_steps: int = 3
    padding: int = 4
    flip: str = "on"
    precision: str = "full"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for option in TRAIN_OPTIONS:
            object.__setattr__(self, option.name, option.parse(getattr(self, option.name)))
        if not 0 < self.eps <= 1:
            raise SettingsError(f"eps needs a number above 0 and at most 1, but got {self.eps}")
        if self.eps_end < self.eps_start:
            raise SettingsError("eps_end comes before eps_start; give shares of the run in order")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainSettings:
        """Settings by name. Raises ``SettingsError`` for a name that is no option."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "eps" not in values:
            raise SettingsError(
                f"there is no training option {unknown[0]!r}" if unknown else "eps is not given"
            )
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def weights(self) -> tuple[bool, float]:
        """``(is natural only, share of the certified loss in the robust one)``."""
        share = {"adversarial": 0.0, "certified": 1.0}.get(self.method, self.certified_weight)
        return self.method == "natural", share


def radius_of(text: str) -> float:
    """A radius written as a decimal or a fraction (``1/255``). Raises ``SettingsError`` for
    anything else."""
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError) as error:
        raise SettingsError(
            f"a radius is a number such as 0.01 or 1/255, but got {text!r}"
        ) from error
