"""Properties that couple networks: equal inputs become one, and outputs are said by differences.

What the constraints of *every* case say of the inputs holds at every violation, and no other point
need be refuted. So an input of the second network that all cases tie to one of the first is not
read any more (its box shrinks to a point, its ties go), which halves the inputs that a search
splits; and a difference of inputs whose sign all cases know has that sign in the network
(``model.pairs``).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bitcrown.bounds import claims, rounding
from bitcrown.bounds.crown import Backward, minimum, output_seeds
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.budget import Budget
from bitcrown.check.witness import tied_inputs
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.model.pairs import PairedInput, with_differences, with_equal_inputs
from bitcrown.search.objective import Objective
from bitcrown.spec.equal_networks import known_order
from bitcrown.spec.problem import Case, Problem

_EXACT = float(1 << 53)
FEW_INPUTS = 16
"""Up to this many varying inputs a box is split rather than the neurons."""
_SCALES = 10
"""Halvings of a box up to which two networks are compared."""
_ROWS = 64
"""Rows by which they are."""
_SHARE = 0.1
"""Of the time left, for the comparison."""
_TINY, _HUGE = 1e-30, 1e30
"""Losses that are compared."""


def coupled(problem: Problem, graph: Graph, objective: Objective) -> tuple[Graph, Objective]:
    """The joined networks and the rows of all cases, with inputs that are equal at every violation
    as one."""
    for first, second in _pairs_of(problem):
        inputs = _paired_inputs(problem, graph, first, second)
        reduced = _with_ties(objective, _ties(graph, inputs))
        if reduced is not None:
            graph, objective = with_equal_inputs(graph, inputs), reduced
    return graph, objective


def by_differences(problem: Problem, graph: Graph) -> Graph | None:
    """``graph`` (from ``coupled``) with outputs of later networks through differences to the first;
    None where that says nothing more."""
    found: Graph | None = None
    for first, second in _pairs_of(problem):
        current = graph if found is None else found
        inputs = _paired_inputs(problem, graph, first, second)
        found = with_differences(current, first, second, inputs) or found
    return found


def _pairs_of(problem: Problem) -> list[tuple[str, str]]:
    names = [network.name for network in problem.query.networks]
    return [(names[0], name) for name in names[1:]]


def _starts(graph: Graph) -> dict[str, int]:
    """Number of the first element of each input."""
    found, start = {}, 0
    for name in graph.inputs:
        found[name], start = start, start + graph.nodes[name].size
    return found


def _paired_inputs(
    problem: Problem, graph: Graph, first: str, second: str
) -> dict[str, PairedInput]:
    """The inputs of the network ``second`` that have the place and shape of one of ``first``."""
    one, other = (
        [name for name in graph.inputs if name.startswith(f"{network}:")]
        for network in (first, second)
    )
    starts = _starts(graph)
    places: dict[str, tuple[str, list[tuple[int, int]]]] = {}
    for p, q in zip(one, other, strict=False):
        if graph.nodes[p].shape == graph.nodes[q].shape:
            size = graph.nodes[p].size
            places[q] = p, [(starts[p] + k, starts[q] + k) for k in range(size)]
    below = _known_order(problem, [pair for _, pairs in places.values() for pair in pairs])
    found: dict[str, PairedInput] = {}
    for q, (p, pairs) in places.items():
        is_below = np.array([pair in below for pair in pairs], dtype=bool)
        is_above = np.array([(j, i) in below for i, j in pairs], dtype=bool)
        sign = is_above.astype(np.int64) - is_below
        found[q] = PairedInput(p, is_below & is_above, sign)
    return found


def _known_order(problem: Problem, pairs: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """Which ``(i, j)`` of ``pairs``, or turned, have ``x_i <= x_j`` in every case."""
    known = {*pairs, *((j, i) for i, j in pairs)}
    pinned: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for case in problem.cases:
        box = id(case.lower), id(case.upper)
        if box not in pinned:
            pinned[box] = pinned_pairs(case, pairs)
        known &= order_of(case, problem.n_inputs) | pinned[box]
        if not known:
            break
    return known


def pinned_pairs(case: Case, pairs: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """Both orders of ``pairs`` whose inputs are one number in the box."""
    low, up = case.lower, case.upper
    same = [(i, j) for i, j in pairs if low[i] == up[i] == low[j] == up[j]]
    return {*same, *((j, i) for i, j in same)}


def order_of(case: Case, n: int) -> set[tuple[int, int]]:
    """Pairs ``(i, j)`` with ``x_i <= x_j`` by one constraint, or by a chain of equalities."""
    orders = (known_order(constraint, n) for constraint in case.constraints)
    found = {pair for pair in orders if pair is not None}
    for group in tied_inputs(case.constraints, n):
        found |= {(int(i), int(j)) for i in group for j in group if i != j}
    return found


def _ties(graph: Graph, inputs: dict[str, PairedInput]) -> list[tuple[int, int]]:
    """``(i, j)``: input ``j`` of the second network is ``i`` of the first."""
    starts = _starts(graph)
    return [
        (starts[pair.first] + int(k), starts[name] + int(k))
        for name, pair in inputs.items()
        for k in np.flatnonzero(pair.same)
    ]


def _with_ties(objective: Objective, ties: list[tuple[int, int]]) -> Objective | None:
    """The rows with ``x_j`` called ``x_i``; None where there are no ties, or a sum of coefficients
    is not exact. The box of ``x_j`` becomes a point: nothing reads it."""
    if not ties:
        return None
    kept, gone = (np.array(side) for side in zip(*ties, strict=True))
    lower, upper, rhs, D = objective.lower, objective.upper.copy(), objective.rhs, objective.D
    upper[:, gone] = lower[:, gone]
    if D is not None:
        D = D.copy()
        D[:, :, kept] += D[:, :, gone]
        D[:, :, gone] = 0.0
        if (np.abs(D) >= _EXACT).any():
            return None
        is_empty = ~(D.any(axis=2) | objective.C.any(axis=2))
        rhs = np.where(is_empty & (np.sign(rhs) != -1), np.inf, rhs)
        D = D if D.any() else None
    used = np.isfinite(rhs).any(axis=0)
    used[0] |= not used.any()
    rows = objective.C[:, used], None if D is None else D[:, used], rhs[:, used]
    return replace(objective, C=rows[0], D=rows[1], rhs=rows[2], upper=upper)


def cheaper(
    plain: Graph, pair: Graph | None, like: Network, objective: Objective, budget: Budget
) -> Network:
    """Of two networks that compute the same where it matters the one with which a search is
    expected to end first; networks are of ``like``'s dtype and device.

    Both bound the rows on the first box and on boxes shrunk around its middle. A loss falls with
    the square of a box's width, so with losses ``L`` at one width, boxes of equal loss differ in
    number by ``(L / L') ** (n / 2)`` for ``n`` inputs that vary, and in cost by what a pass over
    the one and the other network touches. Compared where a row is first excluded.
    """
    first = Network(plain, like.dtype, like.device)
    if pair is None:
        return first
    second = Network(pair, like.dtype, like.device)
    lower, upper = (first.tensor(ends[:1]) for ends in (objective.lower, objective.upper))
    varied = int((lower != upper).sum())
    is_few = varied <= FEW_INPUTS
    width = 2.0 ** -torch.arange(_SCALES if is_few else 1, dtype=like.dtype, device=like.device)
    middle, radius = (lower + upper) / 2, (upper - lower) / 2
    boxes = middle - width[:, None] * radius, middle + width[:, None] * radius
    share = budget.capped(_SHARE * budget.remaining())
    with torch.no_grad():
        bounds = [_row_bounds(network, objective, *boxes, share) for network in (first, second)]
        value = _row_values(first, objective, middle)
    if share.is_expired():
        return first
    excluded = torch.stack([claims.is_active(bound).any(1) for bound in bounds]).any(0)
    place = int(excluded.to(torch.int64).argmax()) if bool(excluded.any()) else len(width) - 1
    losses = torch.stack([(value - bound[place]).mean() for bound in bounds])
    losses = claims.known(losses, math.inf).clamp(_TINY, _HUGE)
    gain = float(claims.ratio(losses[0], losses[1]))
    dearer = _cost(second) / _cost(first) if is_few else 1.0
    return second if max(varied, 1) / 2 * math.log(gain) > math.log(dearer) else first


def _cost(network: Network) -> float:
    """Entries that bounds of all operands touch on one box, a node's and those that it reads."""
    nodes = network.graph.nodes.values()
    operands = {
        name for node in nodes if not network.rows[node.name].is_affine for name in node.inputs[:3]
    }
    rows = sum(network.graph.nodes[name].size for name in operands)
    return float(rows * sum(node.size * (1 + len(node.inputs)) for node in nodes))


def _flat_rows(network: Network, objective: Objective) -> tuple[Tensor, Tensor | None, Tensor]:
    """``C [S, m]``, ``D [S, n]`` and ``rhs [S]`` of rows of the first box, without padding."""
    cases = objective.box == 0
    is_row = np.isfinite(objective.rhs[cases])
    C, rhs = (network.tensor(part[cases][is_row][:_ROWS]) for part in (objective.C, objective.rhs))
    D = None if objective.D is None else network.tensor(objective.D[cases][is_row][:_ROWS])
    return C, D, rhs


def _row_values(network: Network, objective: Objective, x: Tensor) -> Tensor:
    """The rows at ``x [1, n]``: ``[S]``."""
    C, D, rhs = _flat_rows(network, objective)
    value = network(x)[0] @ C.T - rhs
    return value if D is None else value + x[0] @ D.T


def _row_bounds(
    network: Network, objective: Objective, lower: Tensor, upper: Tensor, budget: Budget
) -> Tensor:
    """Lower bounds of the rows on boxes ``[B, n]``: ``[B, S]``."""
    C, D, rhs = _flat_rows(network, objective)
    found = LayerBounder(network, budget.memory // 8, budget=budget).run(lower, upper)
    backward = Backward(network, found.relaxations, scales=found.scales)
    lines = backward.run(output_seeds(network, C.unsqueeze(0)))
    if D is not None:
        lines = lines._replace(coefficient=lines.coefficient + D)
    return minimum(lines, lower, upper, rounding.gamma(network)) - rhs
