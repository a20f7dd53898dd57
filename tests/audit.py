"""Doubting an ``unsat``: seeded samples of every box, replayed on the original network and checked
exactly.

An audit proves nothing when it finds nothing; when it finds a witness, the ``unsat`` was wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from bitcrown.check.witness import Confirmer
from bitcrown.spec.problem import Problem
from bitcrown.verdict import Witness


def audit(problem: Problem, confirmer: Confirmer, count: int, seed: int) -> Witness | None:
    """A confirmed violation among ``count`` samples of every case's box, or None."""
    for place, case in enumerate(problem.cases):
        box = confirmer.box(case)
        random = np.random.default_rng([seed, place])
        for point in islice(_samples(box.lower, box.upper, random), count):
            witness = confirmer.confirm(point, case)
            if witness is not None:
                return witness
    return None


def _samples(
    lower: np.ndarray, upper: np.ndarray, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Middle, least and greatest corner, then random corners and random points alternately."""
    yield from ((lower + upper) / 2, lower, upper)
    while True:
        yield np.where(random.random(len(lower)) < 0.5, lower, upper)
        yield lower + random.random(len(lower)) * (upper - lower)
