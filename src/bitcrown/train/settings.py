"""The options of training: one field each, from which the command line and its help are made.

``method`` chooses the loss. With ``kappa`` the share of the natural loss and
``w = certified_weight``,

    loss = kappa natural + (1 - kappa) (w certified + (1 - w) adversarial),

where ``natural`` has kappa = 1, ``certified`` w = 1, ``adversarial`` w = 0 and ``mixed`` the given
weight. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any

from bitcrown.errors import SettingsError
from bitcrown.settings import Option


def _option(default: str | int | float, sentence: str, **limits: Any) -> Any:
    """A field that is a row of ``TRAIN_OPTIONS`` under its own name."""
    return field(default=default, metadata={"sentence": sentence, **limits})


def _share(default: float, sentence: str) -> Any:
    return _option(default, sentence, low=0.0, high=1.0)


def _word(default: str, sentence: str, *others: str) -> Any:
    return _option(default, sentence, choices=(default, *others))


@dataclass(frozen=True)
class TrainSettings:
    """``eps`` is in units of images in [0, 1]. Raises ``SettingsError`` for values out of range."""

    eps: float
    method: str = _option(
        "mixed", "which loss", choices=("natural", "adversarial", "certified", "mixed")
    )
    epochs: int = _option(20, "passes over the data", low=1, high=100_000)
    batch: int = _option(128, "images a step", low=2, high=65_536)
    learning_rate: float = _share(1e-3, "largest step of Adam")
    learning_schedule: str = _word("cosine", "how it falls after the warm-up", "steps", "constant")
    warm_up: float = _share(0.02, "share of the run in which the learning rate rises")
    weight_decay: float = _share(0.0, "weight decay (decoupled)")
    clip: float = _option(
        8.0, "largest norm of a gradient; longer ones are scaled down", low=1e-6, high=1e9
    )
    train_eps_factor: float = _option(
        1.0, "training goes up to this multiple of eps", low=0.1, high=10.0
    )
    eps_schedule: str = _word("smooth", "how the training eps grows", "linear", "constant")
    eps_start: float = _share(0.05, "share of the run after which the training eps begins to grow")
    eps_end: float = _share(0.5, "share of the run after which it is full")
    kappa_start: float = _share(1.0, "share of the natural loss while eps is zero")
    kappa_end: float = _share(0.0, "share of the natural loss at full eps")
    beta_end: float = _share(
        1.0, "share of CROWN (the rest: interval) in the last bound at full eps"
    )
    certified_weight: float = _share(0.5, "share of the certified loss in a mixed one")
    certified_every: int = _option(
        1, "a mixed loss has its certified part every N-th step only", low=1, high=1000
    )
    fusion: str = _word("auto", "one bound of the loss, or one of each margin", "on", "off")
    attack_steps: int = _option(3, "PGD steps of the adversarial loss", low=1, high=1000)
    padding: int = _option(4, "pixels of padding for random crops; 0: none", low=0, high=64)
    flip: str = _word("on", "mirror half of the images", "off")
    precision: str = _word("full", "mixed: values at points in bfloat16, and TF32 on CUDA", "mixed")
    device: str = _word("auto", "where to train; auto takes CUDA if there is one", "cpu", "cuda")
    seed: int = _option(
        0, "seed of weights, order, augmentation and attacks", low=0, high=2**31 - 1
    )

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
        known = {row.name for row in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "eps" not in values:
            raise SettingsError(
                f"there is no training option {unknown[0]!r}" if unknown else "eps is not given"
            )
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def certified_share(self) -> float:
        """Share of the certified loss in the robust one; the rest is adversarial."""
        return {"adversarial": 0.0, "certified": 1.0}.get(self.method, self.certified_weight)


TRAIN_OPTIONS = tuple(
    Option(row.name, getattr(TrainSettings, row.name), **row.metadata)
    for row in fields(TrainSettings)
    if row.metadata
)


def radius_of(text: str) -> float:
    """A radius as a decimal or a fraction (``1/255``). Raises ``SettingsError`` for others."""
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError) as error:
        raise SettingsError(
            f"a radius is a number such as 0.01 or 1/255, but got {text!r}"
        ) from error
