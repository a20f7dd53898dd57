"""Doubting an ``unsat``: seeded samples of every box, replayed on the original network and checked
exactly.

An audit proves nothing when it finds nothing; when it finds a witness, the ``unsat`` was wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.witness import Confirmer
from bitcrown.errors import PropertyError
from bitcrown.spec.problem import Problem
from bitcrown.verdict import Witness


def audit(
    problem: Problem, replay: RuntimeReplay, confirmer: Confirmer, count: int, seed: int
) -> Witness | None:
    """A confirmed violation among ``count`` samples of the problem's boxes, or None.

    The samples go round the cases in turn: middle, least and greatest corner, then random corners
    and random points alternately. The same ``seed`` gives the same samples. ``replay`` must be the
    one that ``confirmer`` uses.
    """
    if replay is not confirmer.replay:
        raise PropertyError("the audit needs the confirmer's own replay; pass confirmer.replay")
    if not problem.cases:
        return None
    total = len(problem.cases)
    # With fewer samples than cases, the cases are taken evenly, each at its middle.
    places = (
        range(total)
        if count >= total
        else np.linspace(0, total - 1, max(count, 0)).astype(int).tolist()
    )
    samplers = [_samples(confirmer, problem, p, seed) for p in places]
    for k in range(count):
        p, point = next(samplers[k % len(samplers)])
        witness = confirmer.confirm(point, problem.cases[p])
        if witness is not None:
            return witness
    return None


def _samples(
    confirmer: Confirmer, problem: Problem, p: int, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Endless points of case ``p``; each case has its own stream, so that others do not shift
    it."""
    box = confirmer.box(problem.cases[p])
    random = np.random.default_rng([seed, p])
    yield p, (box.lower + box.upper) / 2
    yield p, box.lower
    yield p, box.upper
    while True:
        yield p, np.where(random.random(len(box.lower)) < 0.5, box.lower, box.upper)
        yield p, box.lower + random.random(len(box.lower)) * (box.upper - box.lower)
