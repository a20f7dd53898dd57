"""Strict bounds of single outputs: ``y < 0`` where ``y`` is a ReLU.

Rows take ``<`` for ``<=``, which asks for more than the property where a value touches its limit
and never crosses it: ``relu(z) < 0``, ``sigmoid(z) > 1``. A row of one output needs no arithmetic,
so the end ``l`` of the interval of ``y`` is compared as the rational number that it is: with
``y >= l`` on the box and ``l >= b``, no point has ``y < b``.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch

from bitcrown.bounds.interval import interval_bounds
from bitcrown.model.execute import Network
from bitcrown.search.objective import Objective
from bitcrown.spec.problem import Constraint, Problem


def with_strict_rows(problem: Problem, proof: Network, objective: Objective) -> Objective:
    """``objective`` with a row that no point satisfies in every case that a strict bound of one
    output excludes."""
    n = problem.n_inputs
    asked = [
        [c for c in case.constraints if c.strict and _output(c, n) is not None]
        for case in problem.cases
    ]
    if not any(asked):
        return objective
    lower, upper = _output_intervals(proof, objective)
    ends = lower.tolist(), upper.tolist()
    is_out = np.array([any(_is_out(c, n, *ends) for c in rows) for rows in asked])
    return objective.without(is_out)


def _output(constraint: Constraint, n: int) -> int | None:
    """The number of the one output whose multiple a constraint bounds."""
    (monomial, _), *others = constraint.terms
    return (
        monomial[0] - n
        if not others and len(monomial) == 1 and monomial[0] not in range(n)
        else None
    )


def _is_out(constraint: Constraint, n: int, lower: list[float], upper: list[float]) -> bool:
    output, (_, coefficient) = _output(constraint, n), constraint.terms[0]
    assert output is not None
    ends = lower[output], upper[output]
    if not all(map(math.isfinite, ends)):
        return False
    return not constraint.is_within(min(coefficient * Fraction(end) for end in ends))


def _output_intervals(proof: Network, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """Intervals ``[m]`` of the outputs over the hull of all boxes."""
    hull = (
        proof.tensor(objective.lower.min(axis=0)[None]),
        proof.tensor(objective.upper.max(axis=0)[None]),
    )
    with torch.no_grad():
        bounds = interval_bounds(proof, *hull, wanted=proof.graph.outputs)
    ends = [
        torch.cat([bounds[name][side].reshape(-1) for name in proof.graph.outputs])
        for side in (0, 1)
    ]
    return ends[0].cpu().numpy(), ends[1].cpu().numpy()
