"""The attacks of a suite by name, with AutoAttack's budgets (Croce & Hein 2020), and how each is run on some images.

A component is a sequence of runs: one per restart, or one per restart and target class. An image that a run breaks is
not seen by the next one. Targets are the classes with the largest logits at the clean image, next to the label.

Where a network has few classes, a component does less than its name promises, and a sentence says so.

Legend: ``B`` images, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitcrown.attack.apgd import apgd
from bitcrown.attack.apgd_l1 import apgd_l1
from bitcrown.attack.ball import Ball
from bitcrown.attack.fab import fab
from bitcrown.attack.losses import cross_entropy, dlr, targeted_dlr
from bitcrown.attack.noise import stream_keys
from bitcrown.attack.square import random_points, square
from bitcrown.attack.trace import Trace
from bitcrown.attack.victim import ImageLoss, Victim
from bitcrown.errors import SettingsError


@dataclass(frozen=True)
class Component:
    """``budget``: steps or queries of a run; ``targets``: classes aimed at (0: none); ``repeats``: see ``Victim``."""

    name: str
    budget: int
    restarts: int = 1
    targets: int = 0
    repeats: int = 1

    def needs_gradients(self) -> bool:
        return self.name.startswith(("apgd", "fab"))


_STANDARD = (
    Component("apgd-ce", 100),
    Component("apgd-t", 100, targets=9),
    Component("fab-t", 100, targets=9),
    Component("square", 5000),
)
_STANDARD_L1 = (
    Component("apgd-ce", 100, restarts=5),
    Component("apgd-t", 100, targets=5),
    Component("fab-t", 100, targets=9),
)
_PLUS = (
    Component("apgd-ce", 100, restarts=5),
    Component("apgd-dlr", 100, restarts=5),
    Component("fab", 100, restarts=5),
    Component("square", 5000),
    Component("apgd-t", 100, targets=9),
    Component("fab-t", 100, targets=9),
)
_RAND = (Component("apgd-ce", 100, repeats=20), Component("apgd-dlr", 100, repeats=20))
_BLACK_BOX = (Component("random", 100), Component("square", 5000))

SUITES = {"standard": _STANDARD, "plus": _PLUS, "rand": _RAND, "black-box": _BLACK_BOX}


def components(suite: str, norm: str) -> tuple[Component, ...]:
    """What ``suite`` consists of for ``norm``. Raises ``SettingsError`` for a name that is no suite."""
    if suite not in SUITES:
        raise SettingsError(f"attack suite {suite!r} is not known; use one of {', '.join(SUITES)}")
    if norm != "L1":
        return SUITES[suite]
    if suite == "standard":
        return _STANDARD_L1
    return tuple(component for component in SUITES[suite] if component.name != "square")


def statements(chosen: tuple[Component, ...], norm: str, classes: int, is_differentiable: bool) -> tuple[str, ...]:
    """What a reader must know: where components do less than their names promise."""
    said = []
    names = {component.name for component in chosen}
    if not is_differentiable:
        gone = ", ".join(component.name for component in chosen if component.needs_gradients())
        if gone:
            said.append(f"the network has no gradients: {gone} did not run, random search stands in for them")
    elif classes < 3 and names & {"apgd-dlr", "apgd-t"}:
        said.append(f"DLR needs 3 classes, the network has {classes}: the difference of logits was used instead")
    elif classes < 4 and "apgd-t" in names:
        said.append("targeted DLR needs 4 classes, the network has 3: its denominator is z(1) - z(3)")
    wanted = max(component.targets for component in chosen)
    if is_differentiable and wanted > classes - 1:
        said.append(f"only {classes - 1} of {wanted} target classes exist")
    if norm == "L1":
        said.append("Square has no L1 variant here and did not run")
    return tuple(said)


def run_component(
    component: Component,
    victim: Victim,
    clean: Tensor,
    labels: Tensor,
    number: npt.NDArray[np.int64],
    ball: Ball,
    seed: int,
) -> Trace:
    """All runs of one component on ``clean [B, C, H, W]``, whose numbers in the data set are ``number [B]``."""
    victim = replace(victim, repeats=component.repeats)
    whole = Trace.empty(clean)
    whole.flat.fill_(True)
    ranking = _ranking(victim.logits(clean), labels)
    for restart, aim in _runs(component, ranking.shape[1]):
        place = (~whole.found).nonzero().flatten()
        if not len(place):
            break
        keys = stream_keys(seed, number[place.cpu().numpy()], component.name, restart, aim + 1)
        targets = None if aim < 0 else ranking[place, aim]
        run = _Run(component, victim, ball, clean[place], labels[place])
        whole.merge(place, run.trace(keys, restart, targets))
    return whole


def _runs(component: Component, others: int) -> Iterator[tuple[int, int]]:
    """Restart and rank of the target class (-1: none)."""
    for restart in range(component.restarts):
        yield from ((restart, aim) for aim in (range(min(component.targets, others)) if component.targets else (-1,)))


def _ranking(logits: Tensor, labels: Tensor) -> Tensor:
    """``[B, K - 1]``: the classes other than the label, largest logit first."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order[order != labels.unsqueeze(1)].reshape(len(logits), -1)


@dataclass(frozen=True)
class _Run:
    component: Component
    victim: Victim
    ball: Ball
    clean: Tensor
    labels: Tensor

    def trace(self, keys: npt.NDArray[np.uint64], restart: int, targets: Tensor | None) -> Trace:
        name, budget = self.component.name, self.component.budget
        if name in ("square", "random"):
            search = square if name == "square" else random_points
            return search(self.victim, self.clean, self.labels, self.ball, keys, budget)
        if name.startswith("fab"):
            first = keys if restart else None
            return fab(self.victim, self.clean, self.labels, self.ball, first, budget, targets)
        ascent: Callable[..., Trace] = apgd_l1 if self.ball.norm == "L1" else apgd
        loss: ImageLoss = cross_entropy if name == "apgd-ce" else dlr
        classes = self.labels
        if targets is not None:
            loss, classes = _pair_dlr, torch.stack([self.labels, targets], dim=1)
        return ascent(self.victim, self.clean, self.labels, self.ball, keys, budget, loss, classes)


def _pair_dlr(logits: Tensor, classes: Tensor) -> Tensor:
    return targeted_dlr(logits, classes[:, 0], classes[:, 1])
