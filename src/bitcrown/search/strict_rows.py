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
from bitcrown.spec.case_table import arrays_of
from bitcrown.spec.problem import Constraint, Problem


def with_strict_rows(problem: Problem, proof: Network, objective: Objective) -> Objective:
    """``objective`` with a row that no point satisfies in every case that a strict bound of one
    output excludes."""
    arrays, n = arrays_of(problem.cases, problem.n_inputs), problem.n_inputs
    single = {
        number: (terms[0][0][0] - n, terms[0][1])
        for number, terms in arrays.used_forms().items()
        if len(terms) == 1 and len(terms[0][0]) == 1 and terms[0][0][0] >= n
    }
    asked = np.flatnonzero(arrays.is_strict & np.isin(arrays.form, list(single)))
    if not len(asked):
        return objective
    lower, upper = _output_intervals(proof, objective)
    least = {
        number: min(coefficient * Fraction(end) for end in (lower[output], upper[output]))
        for number, (output, coefficient) in single.items()
        if math.isfinite(lower[output]) and math.isfinite(upper[output])
    }
    rows = zip(arrays.form[asked].tolist(), arrays.bounds.taken(asked), strict=True)
    is_out = [
        k in least and not Constraint(arrays.forms[k], bound, strict=True).is_within(least[k])
        for k, bound in rows
    ]
    case = np.searchsorted(arrays.first, asked[np.array(is_out)], side="right") - 1
    return objective.without(case)


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
