"""What a maximum over a window costs together with its staircases and the sums that they read.

For a window of a pool over a staircase over one affine node, numbers ``alpha`` on the sums ``a_k``
of its members, and ``floor``, the largest lower end among the members:

    mu max_k S(a_k) - sum alpha_k a_k  >=  the least of
        mu floor - max { sum alpha_k a_k }, if no member exceeds the floor, and
        min { mu S(a) - beta a } + min { beta a_j - sum alpha_k a_k }, if j does and is the maximum,

for any ``beta``: the first minimum over those ``a`` in the interval of ``a_j`` at which the
staircase may exceed the floor, the others over the box of what the sums read. ``beta`` is ``mu``
times the chord of the staircase, rounded down. A sum whose interval is less than three quarters of
what its sources span is boxed: it counts as any number of its interval, next to the others, and its
``beta`` is its ``alpha``.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.integers.affine import Integers, LinearRows
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.nodes import Pool, StepNode
from bitcrown.check.certificates.integers.state import State

Alphas = dict[int, dict[int, int]]
"""By window and place."""
_Line = dict[tuple[int, int], int]


def joined_nodes(net: IntegerCircuit, number: int) -> tuple[Pool, StepNode, LinearRows]:
    """The pool, its staircase and the sums that this one reads."""
    pool = net.compiled.get(number)
    need(isinstance(pool, Pool), f"node {number} is no maximum over windows")
    assert isinstance(pool, Pool)
    stairs = net.compiled.get(pool.source)
    need(isinstance(stairs, StepNode), f"node {number} does not read staircases")
    assert isinstance(stairs, StepNode)
    rows = net.compiled.get(stairs.source)
    need(isinstance(rows, LinearRows), f"the staircases of node {number} do not read sums")
    assert isinstance(rows, LinearRows)
    return pool, stairs, rows


def alphas_of(entries: dict[tuple[int, ...], int], pool: Pool) -> Alphas:
    """The multipliers of a certificate by window; places outside of the network are refused."""
    found: Alphas = {}
    for key, value in entries.items():
        need(len(key) == 2 and 0 <= key[0] < len(pool.places), "a multiplier has no window")
        window, place = key
        need(any(p == place for p, _ in pool.places[window]), "a multiplier has no member")
        found.setdefault(window, {})[place] = value
    return found


def joint_work(net: IntegerCircuit, slopes: list[Any]) -> int:
    """Weights and thresholds that the blocks of windows in these multipliers look at."""
    total = 0
    for node, entries in slopes:
        if node < 0:
            pool, stairs, rows = joined_nodes(net, -node)
            for w in alphas_of({tuple(entry[:-1]): entry[-1] for entry in entries}, pool):
                members = pool.members[w]
                total += (len(members) + 1) * sum(len(rows.rows[e]) for e in members)
                total += 2 * sum(len(stairs.late[e]) for e in members)
    return total


def trade_window(
    net: IntegerCircuit,
    state: State,
    number: int,
    window: int,
    mu: int,
    alpha: dict[int, int],
    pulled: Integers,
) -> int:
    """The price of ``mu max = alpha a + (mu max - alpha a)``; ``alpha`` goes to ``pulled``."""
    pool, stairs, rows = joined_nodes(net, number)
    members = pool.members[window]
    line: _Line = {}
    fixed = 0
    low, high = state.low[stairs.source], state.high[stairs.source]
    apart: dict[int, int] = {}
    for place, e in pool.places[window]:
        factor = alpha.get(place, 0)
        pulled[e] += factor
        if _is_boxed(rows, state, e, high[e] - low[e]):
            apart[e] = min(-factor * low[e], -factor * high[e])
            fixed -= apart[e]
        elif factor:
            fixed += factor * rows.bias[e]
            for s, i, w in rows.rows[e]:
                line[s, i] = line.get((s, i), 0) - factor * w
    floor = max(state.low[pool.source][e] for e in members)
    alone = _least(state, line)
    best = mu * floor - fixed + alone
    for place, e in pool.places[window]:
        found = _reach(stairs, state, e, floor)
        if state.high[pool.source][e] <= floor or found is None:
            continue
        start, stop = found
        if e in apart:
            price = stairs.block(e, mu, alpha.get(place, 0), start, stop) - apart[e]
            best = min(best, price - fixed + alone)
            continue
        beta = _chord(stairs.early[e], start, stop, mu)
        own = dict(line)
        for s, i, w in rows.rows[e]:
            own[s, i] = own.get((s, i), 0) + beta * w
        price = stairs.block(e, mu, beta, start, stop) + beta * rows.bias[e] - fixed
        best = min(best, price + _least(state, own))
    return best


def _is_boxed(rows: LinearRows, state: State, e: int, width: int) -> bool:
    span = sum(abs(w) * (state.high[s][i] - state.low[s][i]) for s, i, w in rows.rows[e])
    return 4 * width < 3 * span


def _least(state: State, line: _Line) -> int:
    return sum(min(c * state.low[s][i], c * state.high[s][i]) for (s, i), c in line.items())


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
