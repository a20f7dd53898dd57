"""Staircases and maxima of an integer network: what each makes of intervals, and what a proof may
trade at it.

What a staircase says: for every accumulator that occurs, the output is at least
``base + #{late <= a}`` and at most ``base + #{early <= a}``. Between the attainable sums of two
tensors, where no accumulator lies, the two may contradict each other; every rule uses them one at a
time.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import product
from typing import Any

from bitcrown.check.certificates.documents import integer, integer_list, need
from bitcrown.check.certificates.integers.affine import MOST_SUMMANDS, Integers, windows_of

_MOST_WINDOW = 1 << 10


class StepNode:
    """A staircase node: thresholds and base per element."""

    def __init__(self, node: dict[str, Any], size: int) -> None:
        self.source = integer(node["source"])
        channels = len(node["base"])
        need(channels > 0 and size % channels == 0, "staircase channels do not fit")
        base = integer_list(node["base"], channels, "a base")
        rows = {}
        for name in ("late", "early"):
            need(
                type(node[name]) is list and len(node[name]) == channels,
                "staircase channels do not fit",
            )
            rows[name] = [integer_list(row, len(row), "a row of thresholds") for row in node[name]]
            need(all(row == sorted(row) for row in rows[name]), "staircase thresholds decrease")
        need(
            [*map(len, rows["late"])] == [*map(len, rows["early"])],
            "staircase rows differ in length",
        )
        each = size // channels
        self.base = [base[e // each] for e in range(size)]
        self.late = [rows["late"][e // each] for e in range(size)]
        self.early = [rows["early"][e // each] for e in range(size)]

    @property
    def sources(self) -> set[int]:
        return {self.source}

    @property
    def terms(self) -> int:
        """What looking at every threshold once costs."""
        return len(self.late) + 2 * sum(map(len, self.late))

    def image(self, low: list[Integers], high: list[Integers]) -> tuple[Integers, Integers]:
        """Output intervals, given those of all nodes before."""
        lows = zip(self.base, self.late, low[self.source], strict=True)
        highs = zip(self.base, self.early, high[self.source], strict=True)
        return (
            [b + bisect_right(steps, a) for b, steps, a in lows],
            [b + bisect_right(steps, a) for b, steps, a in highs],
        )

    def preimage(
        self, low: Integers, high: Integers, source_low: Integers, source_high: Integers
    ) -> tuple[Integers, Integers]:
        """What output intervals leave of the source's; an impossible output leaves nothing."""
        lows, highs = [], []
        for e, (least, most) in enumerate(zip(low, high, strict=True)):
            needed, allowed, steps = least - self.base[e], most - self.base[e], len(self.late[e])
            first, last = source_low[e], source_high[e]
            lows.append(
                last + 1 if needed > steps else self.early[e][needed - 1] if needed > 0 else first
            )
            highs.append(
                first - 1 if allowed < 0 else self.late[e][allowed] - 1 if allowed < steps else last
            )
        return lows, highs

    def block(self, e: int, mu: int, slope: int, low: int, high: int) -> int:
        """``min { mu S(a) - slope a : low <= a <= high }``; the staircase that makes it smaller
        where two are known."""
        steps = (self.late if mu >= 0 else self.early)[e]
        first, last = bisect_right(steps, low), bisect_right(steps, high)
        best = mu * (self.base[e] + first) - slope * low
        best = min(best, mu * (self.base[e] + last) - slope * high)
        for k in range(first, last):
            start, before = steps[k], steps[k] - 1
            if start <= high:
                best = min(best, mu * (self.base[e] + bisect_right(steps, start)) - slope * start)
            if before >= low:
                best = min(best, mu * (self.base[e] + bisect_right(steps, before)) - slope * before)
        return int(best)


class Pool:
    """A maximum over windows: ``members[i]`` are the source elements of output i."""

    def __init__(self, node: dict[str, Any], size: int, source_size: int) -> None:
        self.source = integer(node["source"])
        height, width = integer_list(node["plane"], 2, "a plane", 1)
        kh, kw = integer_list(node["kernel"], 2, "a kernel", 1)
        sh, sw = integer_list(node["strides"], 2, "strides", 1)
        top, left, _, _ = integer_list(node["padding"], 4, "padding", 0)
        channels, out_h, out_w = integer_list(node["shape"], 3, "the shape of an image", 1)
        need(
            [out_h, out_w] == windows_of(node, [kh, kw]),
            "a maximum does not have one output per window",
        )
        need(channels * height * width == source_size, "a plane does not fit its source")
        need(
            kh * kw <= _MOST_WINDOW and size * kh * kw <= MOST_SUMMANDS,
            "pooling windows are too large",
        )
        self.places: list[list[tuple[int, int]]] = []
        for c, y, x in product(range(channels), range(out_h), range(out_w)):
            found = []
            for place, (i, j) in enumerate(product(range(kh), range(kw))):
                row, column = y * sh + i - top, x * sw + j - left
                if 0 <= row < height and 0 <= column < width:
                    found.append((place, (c * height + row) * width + column))
            need(bool(found), "a pooling window is empty")
            self.places.append(found)
        self.members = [[e for _, e in found] for found in self.places]

    @property
    def sources(self) -> set[int]:
        return {self.source}

    @property
    def terms(self) -> int:
        """What ``block`` costs for every window, which is quadratic in its size."""
        return sum(len(m) ** 2 for m in self.members)

    def image(self, low: list[Integers], high: list[Integers]) -> tuple[Integers, Integers]:
        """Output intervals, given those of all nodes before."""
        a, b = low[self.source], high[self.source]
        return [max(a[e] for e in m) for m in self.members], [
            max(b[e] for e in m) for m in self.members
        ]

    @staticmethod
    def block(mu: int, slopes: Integers, low: Integers, high: Integers) -> int:
        """``min { mu m - slopes x : low <= x <= high, m = max x }``: concave between upper ends, so
        those decide."""
        floor = max(low)
        best: int | None = None
        for top in {floor, *(h for h in high if h > floor)}:
            free = [min(h, top) if s > 0 else a for s, a, h in zip(slopes, low, high, strict=True)]
            regret = min(
                0 if s > 0 else -s * (top - a)
                for s, a, h in zip(slopes, low, high, strict=True)
                if h >= top
            )
            value = mu * top - sum(s * x for s, x in zip(slopes, free, strict=True)) + regret
            best = value if best is None else min(best, value)
        assert best is not None
        return best
