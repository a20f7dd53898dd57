"""The attacks of a suite by name, with AutoAttack's budgets (Croce & Hein 2020), and how each is
run on some images.

A component is a sequence of runs: one per restart, or one per restart and target class. Targets are
the classes with the largest logits at the clean image, next to the label. What counts for an image
is the first run that breaks it; later ones are left out, or forgotten where they ran beside it: the
runs of few images share the calls of the network, which cost as much for five images as for fifty.

Where a network has few classes, a component does less than its name promises, and a sentence says
so.

Legend: ``B`` images, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitcrown.attacks.images.apgd import apgd
from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.fab import fab
from bitcrown.attacks.images.losses import cross_entropy, dlr, targeted_dlr
from bitcrown.attacks.images.noise import Keys, stream_keys
from bitcrown.attacks.images.square import random_points, square
from bitcrown.attacks.images.trace import Trace
from bitcrown.attacks.images.victim import ImageLoss, Victim
from bitcrown.attacks.images.windows import Places
from bitcrown.errors import SettingsError


@dataclass(frozen=True)
class Component:
    """``budget``: steps or queries of a run; ``targets``: classes aimed at (0: none); ``repeats``:
    see ``Victim``."""

    name: str
    budget: int
    restarts: int = 1
    targets: int = 0
    repeats: int = 1

    def needs_gradients(self) -> bool:
        return self.name.startswith(("apgd", "fab"))

    def series(self, others: int) -> list[list[tuple[int, int]]]:
        """Runs in their order, as restart and rank of the target class of ``others`` (-1: none).

        Those of one series may run beside each other; FAB's first restart begins elsewhere than the
        others.
        """
        aims = range(min(self.targets, others)) if self.targets else (-1,)
        series = [[(restart, aim) for aim in aims] for restart in range(self.restarts)]
        if self.name.startswith("fab"):
            return [series[0], *([sum(series[1:], [])] if series[1:] else [])]
        return [sum(series, [])]

    def width(self, others: int) -> int:
        """Points of one image that may share a call: its runs, or the queries of Square."""
        return self.budget if self.name == "square" else sum(map(len, self.series(others)))


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
    Component("square", 5000),
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
    """What ``suite`` consists of for ``norm``. Raises ``SettingsError`` for other names."""
    if suite not in SUITES:
        raise SettingsError(f"attack suite {suite!r} is not known; use one of {', '.join(SUITES)}")
    return _STANDARD_L1 if suite == "standard" and norm == "L1" else SUITES[suite]


def statements(
    chosen: tuple[Component, ...], classes: int, is_differentiable: bool
) -> tuple[str, ...]:
    """What a reader must know: where components do less than their names promise."""
    said = []
    names = {component.name for component in chosen}
    if not is_differentiable:
        gone = ", ".join(component.name for component in chosen if component.needs_gradients())
        if gone:
            said.append(
                f"the network has no gradients: {gone} did not run, random search stands in for "
                "them"
            )
    elif classes < 3 and names & {"apgd-dlr", "apgd-t"}:
        said.append(
            f"DLR needs 3 classes, the network has {classes}: the difference of logits was used "
            "instead"
        )
    elif classes < 4 and "apgd-t" in names:
        said.append(
            "targeted DLR needs 4 classes, the network has 3: its denominator is z(1) - z(3)"
        )
    wanted = max(component.targets for component in chosen)
    if is_differentiable and wanted > classes - 1:
        said.append(f"only {classes - 1} of {wanted} target classes exist")
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
    """All runs of one component on ``clean [B, C, H, W]``; ``number [B]``: in the data set."""
    victim = replace(victim, repeats=component.repeats)
    whole = Trace.empty(clean)
    whole.flat.fill_(True)
    ranking = _ranking(victim.logits(clean), labels)
    job = _Job(component, victim, ball, clean, labels, number, seed, ranking)
    for runs in component.series(ranking.shape[1]):
        run = np.repeat(np.arange(len(runs)), len(clean))
        place = np.tile(np.arange(len(clean)), len(runs))
        while True:
            stands = ~whole.found.cpu().numpy()[place]
            run, place = run[stands], place[stands]
            if not len(run):
                break
            # A network whose logits depend on the batch gets the images of one run at a time.
            alone = int((run == run[0]).sum())
            count = alone if victim.rows is None else max(len(clean), victim.rows)
            job.merge(whole, runs, run[:count], place[:count])
            run, place = run[count:], place[count:]
    return whole


def _ranking(logits: Tensor, labels: Tensor) -> Tensor:
    """``[B, K - 1]``: the classes other than the label, largest logit first."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order[order != labels.unsqueeze(1)].reshape(len(logits), -1)


@dataclass(frozen=True)
class _Job:
    """``ranking [B, K - 1]``: see ``_ranking``; the rest as ``run_component`` has it."""

    component: Component
    victim: Victim
    ball: Ball
    clean: Tensor
    labels: Tensor
    number: Places
    seed: int
    ranking: Tensor

    def merge(
        self, whole: Trace, runs: Sequence[tuple[int, int]], run: Places, place: Places
    ) -> None:
        """Add to ``whole`` run ``runs[run[k]]`` on image ``place[k]``, all ``k``, sorted by run."""
        parts = [(number, np.flatnonzero(run == number)) for number in np.unique(run).tolist()]
        keys = np.concatenate([
            stream_keys(self.seed, self.number[place[part]], self.component.name, first, second + 1)
            for (first, second), part in ((runs[number], part) for number, part in parts)
        ])  # fmt: skip
        aims = np.array(runs)[run, 1]
        at = torch.from_numpy(place).to(self.clean.device)
        targets = None if aims[0] < 0 else self.ranking[at, torch.from_numpy(aims).to(at.device)]
        trace = self._trace(self.clean[at], self.labels[at], keys, runs[run[0]][0], targets)
        for _, part in parts:
            index = torch.from_numpy(part).to(at.device)
            index = index[~whole.found[at[index]]]
            whole.merge(at[index], Trace(*(field[index] for field in trace)))

    def _trace(
        self, clean: Tensor, labels: Tensor, keys: Keys, restart: int, targets: Tensor | None
    ) -> Trace:
        name, budget = self.component.name, self.component.budget
        victim, ball = self.victim, self.ball
        if name in ("square", "random"):
            search = square if name == "square" else random_points
            return search(victim, clean, labels, ball, keys, budget)
        if name.startswith("fab"):
            return fab(victim, clean, labels, ball, keys if restart else None, budget, targets)
        loss: ImageLoss = cross_entropy if name == "apgd-ce" else dlr
        classes = labels
        if targets is not None:
            loss, classes = _pair_dlr, torch.stack([labels, targets], dim=1)
        return apgd(victim, clean, labels, ball, keys, budget, loss, classes)


def _pair_dlr(logits: Tensor, classes: Tensor) -> Tensor:
    return targeted_dlr(logits, classes[:, 0], classes[:, 1])
