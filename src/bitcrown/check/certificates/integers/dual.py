"""The lower bound L of a proof about an integer network, and what follows from it.

Each point of a state that satisfies a case has ``0 >= sum tau (c o - b)``. Going backwards,
coefficients ``mu`` on a staircase output are traded for ``lambda`` on its argument ``a``, at the
price of ``min { mu S(a) - lambda a }`` over the argument's interval, attained at an end of it or of
a level; affine steps transpose; a maximum over a window costs ``min { mu max(x) - lambda x }``. The
input box ends it (windows may be priced with what they read, ``windows``):
the sum of all these minima is L, and ``sum tau (c o - b) >= L`` for any ``tau``
and ``lambda``.

Legend: ``mu`` coefficients of a node's outputs, ``lambda`` (slopes) those of its argument.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.integers.affine import Integers, LinearRows
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.nodes import Pool, StepNode
from bitcrown.check.certificates.integers.state import State
from bitcrown.check.certificates.integers.windows import joined_nodes, joint_lines, trade_window

Goal = tuple[dict[int, Integers], int]
"""A linear function of the elements of some nodes, and its constant."""
_Slopes = dict[int, dict[tuple[int, ...], int]]


class Dual(NamedTuple):
    """L, and the coefficients (mu, lambda) that met each staircase and the input."""

    value: int
    outer: dict[int, Integers]
    inner: dict[int, Integers]
    first: Integers

    def excludes(
        self, net: IntegerCircuit, old: State, node: int, e: int, removed: tuple[int, int]
    ) -> bool:
        """Whether element ``e`` of ``node`` cannot lie in ``removed``.

        L is a sum of one minimum a block. If one block of the element, minimised over ``removed``
        instead of its interval in ``old``, rises so far that L is positive, no point is there.
        """
        low, high = old.low[node][e], old.high[node][e]
        rises = []
        if node == 0:
            c = self.first[e]
            rises.append(min(c * end for end in removed) - min(c * low, c * high))
        for number, mu in self.outer.items():
            step = net.compiled[number]
            if isinstance(step, StepNode) and step.source == node:
                slope = self.inner[number][e]
                least = step.block(e, mu[e], slope, low, high)
                rises.append(step.block(e, mu[e], slope, *removed) - least)
        return bool(rises) and self.value + max(rises) > 0


def dual_bound(net: IntegerCircuit, state: State, goal: Goal, slopes: list[Any]) -> Dual:
    """L for ``goal`` and these slopes on this state."""
    coefficients, total = goal
    given = _by_node(slopes)
    outer: dict[int, Integers] = {}
    inner: dict[int, Integers] = {}
    for number, step in reversed(net.compiled.items()):
        mu = coefficients.pop(number, [0] * net.sizes[number] if number in given else None)
        if mu is None:
            continue
        if isinstance(step, LinearRows):
            # mu (W v + b) = (W' mu) v + mu b
            total += sum(m * b for m, b in zip(mu, step.bias, strict=True) if m)
            for m, row in zip(mu, step.rows, strict=True):
                if m:
                    for s, e, w in row:
                        if s not in coefficients:
                            coefficients[s] = [0] * net.sizes[s]
                        coefficients[s][e] += m * w
            continue
        low, high = state.low[step.source], state.high[step.source]
        pulled = coefficients.setdefault(step.source, [0] * net.sizes[step.source])
        own = given.get(number, {})
        if isinstance(step, Pool):
            joint = joint_lines(net, number, given[-number]) if -number in given else {}
            if joint:
                (node,) = joined_nodes(net, number)[2].sources
                arrived = coefficients.setdefault(node, [0] * net.sizes[node])
                for window, gamma in joint.items():
                    total += trade_window(net, state, number, window, mu[window], gamma, arrived)
                mu = [0 if w in joint else m for w, m in enumerate(mu)]
                own = {key: value for key, value in own.items() if key[0] not in joint}
            total += _trade_maxima(step, mu, own, (low, high), pulled)
            continue
        outer[number], inner[number] = mu, [own.get((e,), 0) for e in range(len(mu))]
        for e, (m, slope) in enumerate(zip(mu, inner[number], strict=True)):
            if m or slope:
                # mu S(a) = slope a + (mu S(a) - slope a)
                total += step.block(e, m, slope, low[e], high[e])
                pulled[e] += slope
    first = coefficients.get(0, [0] * net.sizes[0])
    ends = zip(first, state.low[0], state.high[0], strict=True)
    total += sum(min(c * a, c * b) for c, a, b in ends)
    return Dual(total, outer, inner, first)


def _by_node(slopes: list[Any]) -> _Slopes:
    given: _Slopes = {}
    for node, entries in slopes:
        need(node not in given, f"node {node} has its multipliers twice")
        given[node] = {tuple(entry[:-1]): entry[-1] for entry in entries}
    return given


def _trade_maxima(
    step: Pool,
    mu: Integers,
    own: dict[tuple[int, ...], int],
    ends: tuple[Integers, Integers],
    pulled: Integers,
) -> int:
    """The price of ``mu max(x) = slopes x + (mu max(x) - slopes x)`` for every window; slopes go
    to ``pulled``."""
    low, high = ends
    total = 0
    for i, m in enumerate(mu):
        slopes = [own.get((i, place), 0) for place, _ in step.places[i]]
        members = step.members[i]
        total += step.block(m, slopes, [low[e] for e in members], [high[e] for e in members])
        for e, slope in zip(members, slopes, strict=True):
            pulled[e] += slope
    return total


def clipped_end(
    net: IntegerCircuit, state: State, dual: Dual, entry: Integers
) -> tuple[int | None, int | None]:
    """New ends for an affine node's element ``v = w x + b`` on the input, ``None`` for one that
    stays.

    ``0 >= c + g x`` is the dual's line over the inputs. So for ``q > 0``, ``t >= 0``:
    ``q s v >= q s v + t (c + g x) = q s b + t c + (q s w + t g) x``, at least its minimum over the
    box.
    """
    node, e, sign, weight, times = entry
    step = net.compiled[node]
    assert isinstance(step, LinearRows)
    low, high = state.low[0], state.high[0]
    ends = zip(dual.first, low, high, strict=True)
    constant = dual.value - sum(min(c * a, c * b) for c, a, b in ends)
    line = [times * c for c in dual.first]
    for _, i, w in step.rows[e]:
        line[i] += sign * weight * w
    value = sign * weight * step.bias[e] + times * constant
    value += sum(c * (a if c > 0 else b) for c, a, b in zip(line, low, high, strict=True))
    return signed_end(sign, weight, value)


def signed_end(sign: int, weight: int, value: int) -> tuple[int | None, int | None]:
    """The end of ``v`` that ``weight sign v >= value`` gives, in integers."""
    least = -(-value // weight)
    return (least, None) if sign > 0 else (None, -least)
