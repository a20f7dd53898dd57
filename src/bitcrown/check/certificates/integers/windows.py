"""What a maximum over a window costs together with its staircases and the sums that they read.

For a window of a pool over a staircase over one affine node that reads one node, numbers ``gamma``
on the elements ``v`` of that node, and ``floor``, the largest lower end among the members:

    mu max_k S(a_k) - gamma v  >=  the least of
        mu floor - max gamma v, if no member exceeds the floor, and
        min { mu S(a) - beta a } + min { beta a_j - gamma v }, if j does and is the maximum,

for any ``beta``: the first minimum over those ``a`` in the interval of ``a_j`` at which the
staircase may exceed the floor, the others over the box of ``v``, of which ``a_j`` is an affine
function. ``beta`` is ``mu`` times the chord of the staircase, rounded down.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.integers.affine import Integers, LinearRows
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.nodes import Pool, StepNode
from bitcrown.check.certificates.integers.state import State

PatchLines = dict[int, dict[int, int]]
"""By window and element of what the windows read."""


def joined_nodes(net: IntegerCircuit, number: int) -> tuple[Pool, StepNode, LinearRows]:
    """The pool, its staircase and the sums that this one reads."""
    pool = net.compiled.get(number)
    need(isinstance(pool, Pool), f"node {number} is no maximum over windows")
    assert isinstance(pool, Pool)
    stairs = net.compiled.get(pool.source)
    need(isinstance(stairs, StepNode), f"node {number} does not read staircases")
    assert isinstance(stairs, StepNode)
    rows = net.compiled.get(stairs.source)
    need(
        isinstance(rows, LinearRows) and len(rows.sources) == 1,
        f"the staircases of node {number} do not read sums of one node",
    )
    assert isinstance(rows, LinearRows)
    return pool, stairs, rows


def lines_of(entries: dict[tuple[int, ...], int], pool: Pool, size: int) -> PatchLines:
    """The multipliers of a certificate by window; places outside of the network are refused.
    ``size``: of the node that the sums read."""
    found: PatchLines = {}
    for key, value in entries.items():
        need(len(key) == 2 and 0 <= key[0] < len(pool.places), "a multiplier has no window")
        window, element = key
        need(0 <= element < size, "a multiplier has no element")
        found.setdefault(window, {})[element] = value
    return found


def joint_lines(
    net: IntegerCircuit, number: int, entries: dict[tuple[int, ...], int]
) -> PatchLines:
    """The multipliers of the blocks of pool ``number``."""
    pool, _, rows = joined_nodes(net, number)
    (node,) = rows.sources
    return lines_of(entries, pool, net.sizes[node])


def joint_work(net: IntegerCircuit, slopes: list[Any]) -> int:
    """Weights and thresholds that the blocks of windows in these multipliers look at."""
    total = 0
    for node, entries in slopes:
        if node < 0:
            pool, stairs, rows = joined_nodes(net, -node)
            lines = joint_lines(net, -node, {tuple(entry[:-1]): entry[-1] for entry in entries})
            for w, line in lines.items():
                members = pool.members[w]
                total += (len(members) + 1) * len(line) + 2 * sum(
                    len(rows.rows[e]) for e in members
                )
                total += 2 * sum(len(stairs.late[e]) for e in members)
    return total


def trade_window(
    net: IntegerCircuit,
    state: State,
    number: int,
    window: int,
    mu: int,
    gamma: dict[int, int],
    pulled: Integers,
) -> int:
    """The price of ``mu max = gamma v + (mu max - gamma v)``; ``gamma`` goes to ``pulled``."""
    pool, stairs, rows = joined_nodes(net, number)
    (node,) = rows.sources
    low, high = state.low[node], state.high[node]
    for u, factor in gamma.items():
        pulled[u] += factor
    alone = sum(min(-g * low[u], -g * high[u]) for u, g in gamma.items())
    floor = max(state.low[pool.source][e] for e in pool.members[window])
    best = mu * floor + alone
    for e in pool.members[window]:
        found = _reach(stairs, state, e, floor)
        if state.high[pool.source][e] <= floor or found is None:
            continue
        start, stop = found
        beta = _chord(stairs.early[e], start, stop, mu)
        line = {u: -g for u, g in gamma.items()}
        for _, u, w in rows.rows[e]:
            line[u] = line.get(u, 0) + beta * w
        least = sum(min(c * low[u], c * high[u]) for u, c in line.items())
        price = stairs.block(e, mu, beta, start, stop) + beta * rows.bias[e]
        best = min(best, price + least)
    return best


def _reach(stairs: StepNode, state: State, e: int, floor: int) -> tuple[int, int] | None:
    """Where staircase ``e`` may exceed ``floor``; ``None`` for nowhere. A value above the floor is
    at most the early staircase, which then is above the floor too."""
    first, stop = state.low[stairs.source][e], state.high[stairs.source][e]
    steps, needed = stairs.early[e], floor - stairs.base[e]
    if needed >= len(steps):
        return None
    start = max(first, steps[needed]) if needed >= 0 else first
    return (start, stop) if start <= stop else None


def _chord(steps: Integers, start: int, stop: int, mu: int) -> int:
    first, last = bisect_right(steps, start), bisect_right(steps, stop)
    run = steps[last - 1] - start if last > first else 0
    return mu * (last - first) // run if run > 0 else 0
