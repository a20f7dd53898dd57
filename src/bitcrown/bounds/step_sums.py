"""Rows that count steps: of several steps that may each be wrong, not all are wrong at once.

Behind ``s_i = sign(z_i)`` or ``max(sign(z_i), 0)`` a row is bounded by a backward pass that ends
there. For every input of the box

    q  >=  sum_i a_i s_i + constant - error  >=  base + sum_i g_i right_i,     right_i in {0, 1},

with ``s_i`` in ``[l_i, u_i]``, ``base`` the least value of the middle over these ranges, and
``g_i = |a_i| (u_i - l_i)``: a step is *right* where ``y_i = sgn(a_i) z_i > 0``, and then ``s_i`` is
at the end that ``base`` does not take. No line through a step sees that ``right_i`` is 0 or 1: for
an open step ``y_i > 0`` gains all of ``g_i``, however small ``y_i`` is.

*Groups.* If a weighted sum ``sum_{i in G} w_i y_i`` with ``w >= 0`` is positive on the box, some
step of ``G`` is right at every point, though perhaps no single one is at all points. Neighbouring
steps read the same neurons, so such a sum has far less slack than its terms. If any two of ``C``
are such a group, at most one of ``C`` is wrong. Either way ``sum_{i in G} right_i >= m``.

*Adding up.* For claims ``sum_{i in G_k} right_i >= m_k`` and any ``y_k >= 0``, with the load
``t_i = sum_{k: i in G_k} y_k``,

    sum_i g_i right_i  >=  sum_i t_i right_i - sum_i max(t_i - g_i, 0)  >=  sum_k y_k m_k - sum_i
    max(t_i - g_i, 0),

the dual of a linear program, which is evaluated in fractions.

*Whole numbers.* The sign of a whole number in [-1, 1] is the number, which its lines do not see:
behind steps that are compared with known labels every pass would lose all.

Legend: ``S`` rows, ``N`` steps, ``K`` groups, ``*`` a node's shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.claims import least_margin
from bitcrown.bounds.crown import Backward, minimum, output_seeds
from bitcrown.bounds.intermediate import Enclosure
from bitcrown.bounds.relaxations.registry import Relaxation
from bitcrown.bounds.wanted import COPIES
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node

_LARGE = 1e290
"""Coefficients and weights from here on are not counted: their sums might leave float64."""


StepGroup = tuple[int, ...]
"""Steps by their flat places."""


class StepClaim(NamedTuple):
    """At least ``least`` of the steps ``members`` are right at every point."""

    members: StepGroup
    least: int = 1


@dataclass(frozen=True)
class StepRow:
    """A row as ``base + sum gains right``: ``direction [N]`` is ``sgn(a)``, 0 where the step is
    known or has no part in the row; ``source`` is the node whose signs are taken."""

    source: str
    base: float
    gains: list[Fraction]
    direction: Tensor

    def may_suffice(self) -> bool:
        """Whether the row is positive if every step is right."""
        return math.isfinite(self.base) and Fraction(self.base) + sum(self.gains) > 0

    def least(self, claims: Sequence[StepClaim], weights: Sequence[float]) -> float:
        """A lower bound of the row, given the claims and any weights, from below."""
        load = [Fraction(0)] * len(self.gains)
        total = Fraction(0)
        for claim, weight in zip(claims, weights, strict=True):
            if not 0 < weight < _LARGE:
                continue
            total += Fraction(weight) * claim.least
            for member in claim.members:
                load[member] += Fraction(weight)
        for reached, gain in zip(load, self.gains, strict=True):
            total -= max(reached - gain, Fraction(0))
        if not math.isfinite(self.base) or total <= 0:
            return self.base
        exact = total + Fraction(self.base)
        return math.nextafter(float(exact), -math.inf)


def step_of(graph: Graph) -> tuple[str, str] | None:
    """The node at which passes end, and the node whose signs it takes, where the graph's first
    steps are one node."""
    behind: set[str] = set()
    found, readers = [], graph.consumers()
    for node in graph.nodes.values():
        if any(name in behind for name in node.inputs):
            behind.add(node.name)
        elif node.op == "Sign" and node.rounding is None:
            behind.add(node.name)
            after = [graph.nodes[name] for name in readers[node.name]]
            is_half = len(after) == 1 and after[0].op == "Relu" and after[0].rounding is None
            is_read = node.name in graph.outputs
            found.append((after[0].name if is_half and not is_read else node.name, node.inputs[0]))
    return found[0] if len(found) == 1 else None


def step_rows(network: Network, enclosure: Enclosure, rows: Tensor, rhs: Tensor) -> list[StepRow]:
    """The rows ``C y - rhs``, ``[S, m]`` and ``[S]``, as sums over the steps of ``network``, none
    where it has no steps."""
    step = step_of(network.graph)
    if step is None:
        return []
    tail = _tail(network, step[0])
    if step[0] not in tail.graph.nodes:
        return []
    names = tail.graph.nodes
    scales = rounding.Scales(
        enclosure.scales.gamma,
        {name: value for name, value in enclosure.scales.items() if name in names},
        {name: value for name, value in enclosure.scales.radii.items() if name in names},
    )
    relaxations = {
        name: line
        for name, line in enclosure.relaxations.items()
        if name in names and names[name].op != "Input"
    }
    relaxations.update(_whole_signs(tail, step[0], enclosure))
    bottom = -1.0 if network.graph.nodes[step[0]].op == "Sign" else 0.0
    ends = []
    for name in tail.graph.inputs:
        shape = names[name].shape
        low, up = (end.expand(1, *shape) for end in enclosure.bounds[name])
        if name == step[0]:
            low, up = low.clamp(min=bottom), up.clamp(max=1.0)
        ends.append((low.reshape(1, -1), up.reshape(1, -1)))
    low, up = (torch.cat(parts, dim=1) for parts in zip(*ends, strict=True))
    backward = Backward(tail, relaxations, scales=scales)
    with torch.no_grad():
        lines = backward.run(output_seeds(tail, rows.unsqueeze(0)))
        base = least_margin(minimum(lines, low, up, backward.gamma)[0], rhs)
    size, found = network.graph.nodes[step[0]].size, []
    for row, value in zip(lines.coefficient[0, :, :size], base.tolist(), strict=True):
        is_open = (low[0, :size] < up[0, :size]) & (row.abs() < _LARGE)
        gains = [
            abs(Fraction(a)) * (Fraction(u) - Fraction(b)) if known else Fraction(0)
            for a, b, u, known in zip(
                row.tolist(),
                low[0, :size].tolist(),
                up[0, :size].tolist(),
                is_open.tolist(),
                strict=True,
            )
        ]
        found.append(StepRow(step[1], value, gains, torch.where(is_open, torch.sign(row), 0.0)))
    return found


def _tail(network: Network, step: str) -> Network:
    """``network`` with ``step`` for its first input: what lies behind, and what else that reads."""
    graph = network.graph
    needed = set(graph.outputs)
    for node in reversed(list(graph.nodes.values())):
        if node.name in needed and node.name != step:
            needed.update(node.inputs)
    nodes: dict[str, Node] = {
        node.name: replace(node, op="Input", inputs=()) if node.name == step else node
        for node in graph.nodes.values()
        if node.name in needed
    }
    inputs = (step, *(name for name in graph.inputs if name in needed))
    tail = Graph(nodes, inputs, graph.outputs)
    return network.on(tail, {name: network.params[name] for name in nodes})


def _whole_signs(tail: Network, step: str, enclosure: Enclosure) -> Mapping[str, Relaxation]:
    """Exact lines for signs of whole numbers that lie in [-1, 1]."""
    whole, found = {step}, {}
    for node in tail.graph.nodes.values():
        if node.rounding is not None or node.op == "Input":
            continue
        weights = tail.params[node.name].values()
        keeps = node.op in (*COPIES, "Relu", "Sign", "Add", "Sub") or (
            node.op in ("Scale", "Constant")
            and all(bool((weight == torch.round(weight)).all()) for weight in weights)
        )
        if (keeps and all(name in whole for name in node.inputs)) or node.op == "Truncate":
            whole.add(node.name)
        if node.op == "Sign" and node.inputs[0] in whole:
            low, up = (end.unsqueeze(1) for end in enclosure.bounds[node.inputs[0]])
            line = enclosure.relaxations[node.name]
            is_same = (low >= -1) & (up <= 1)
            slopes = [
                torch.where(is_same, 1.0, s[0]) for s in (line.lower_slopes, line.upper_slopes)
            ]
            found[node.name] = Relaxation(
                (slopes[0],),
                torch.where(is_same, 0.0, line.lower_intercept),
                (slopes[1],),
                torch.where(is_same, 0.0, line.upper_intercept),
            )
    return found
