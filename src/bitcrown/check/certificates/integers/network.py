"""An integer network in plain Python, from its canonical JSON form; and the intervals that a proof
works on.

Used by the certificate checker only; shares no code with the prover. Node kinds: ``input``,
``dense``, ``conv``, ``sum``, ``gather`` (all affine: sparse rows of (source, element, weight)),
``staircase`` and ``maxpool``. Every tensor is flat in C order. Integers have no width here, so no
sum can wrap and no threshold means "never" but by its size.

What a staircase says: for every accumulator that occurs, the output is at least
``base + #{late <= a}`` and at most ``base + #{early <= a}``. Between the attainable sums of two
tensors, where no accumulator lies, the two may contradict each other (``_require_order`` sees that
it is only there); every rule of the checker uses them one at a time.

The form is taken apart here once; after that all sizes agree, and indices are inside.
``MOST_TERMS`` and ``MOST_ELEMENTS`` bound what a few letters of a form can ask for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

Row = list[int]
MOST_ELEMENTS = 1 << 20
MOST_TERMS = 1 << 24
MOST_WINDOW = 1 << 10
MOST_SUMS = 1 << 20


class Reject(Exception):
    """The certificate is not a proof; the message says where."""


def need(condition: bool, message: str) -> None:
    if not condition:
        raise Reject(message)


def integer(value: Any) -> int:
    need(type(value) is int, f"{str(value)[:40]!r} is not an integer")
    return int(value)


def numbers(values: Any, count: int, what: str, least: int | None = None) -> Row:
    """``values`` if it is a list of ``count`` integers, each at least ``least``."""
    need(type(values) is list and len(values) == count, f"{what} is not a list of {count} integers")
    for value in values:
        need(
            type(value) is int and (least is None or value >= least),
            f"{what} has an entry that does not fit",
        )
    return list(values)


def size_of(shape: Any) -> int:
    need(type(shape) is list and 0 < len(shape) <= 8, "a shape is not a list of 1 to 8 integers")
    size = prod(numbers(shape, len(shape), "a shape", 1))
    need(size <= MOST_ELEMENTS, f"a node has more than {MOST_ELEMENTS} elements")
    return size


class Affine:
    """``out[i] = bias[i] + sum w * v[s][e]`` for (s, e, w) in ``rows[i]``."""

    def __init__(
        self, rows: list[list[tuple[int, int, int]]], bias: Row, sources: set[int]
    ) -> None:
        self.rows, self.bias, self.sources = rows, bias, sources
        need(len(rows) == len(bias), "an affine node has another number of biases than outputs")

    def ends(self, first: list[Row], second: list[Row]) -> Row:
        """Positive weights take ``first``, negative ones ``second`` (low/high gives the lower
        ends)."""
        return [
            b + sum(w * (first if w > 0 else second)[s][e] for s, e, w in row)
            for row, b in zip(self.rows, self.bias, strict=True)
        ]


class Stairs:
    """A staircase node: thresholds and base per element."""

    def __init__(self, node: dict[str, Any], size: int) -> None:
        self.source = integer(node["source"])
        channels = len(node["base"])
        need(channels > 0 and size % channels == 0, "staircase channels do not fit")
        base = numbers(node["base"], channels, "a base")
        rows = {}
        for name in ("late", "early"):
            need(
                type(node[name]) is list and len(node[name]) == channels,
                "staircase channels do not fit",
            )
            rows[name] = [numbers(row, len(row), "a row of thresholds") for row in node[name]]
            need(all(row == sorted(row) for row in rows[name]), "staircase thresholds decrease")
        need(
            [*map(len, rows["late"])] == [*map(len, rows["early"])],
            "staircase rows differ in length",
        )
        each = size // channels
        self.base = [base[e // each] for e in range(size)]
        self.late = [rows["late"][e // each] for e in range(size)]
        self.early = [rows["early"][e // each] for e in range(size)]

    def image(self, low: Row, high: Row) -> tuple[Row, Row]:
        """Output intervals, given those of the source."""
        return (
            [b + bisect_right(t, a) for b, t, a in zip(self.base, self.late, low, strict=True)],
            [b + bisect_right(t, a) for b, t, a in zip(self.base, self.early, high, strict=True)],
        )

    def preimage(self, low: Row, high: Row, source_low: Row, source_high: Row) -> tuple[Row, Row]:
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
        height, width = numbers(node["plane"], 2, "a plane", 1)
        kh, kw = numbers(node["kernel"], 2, "a kernel", 1)
        sh, sw = numbers(node["strides"], 2, "strides", 1)
        top, left, _, _ = numbers(node["padding"], 4, "padding", 0)
        channels, out_h, out_w = numbers(node["shape"], 3, "the shape of an image", 1)
        need(
            [out_h, out_w] == windows_of(node, [kh, kw]),
            "a maximum does not have one output per window",
        )
        need(channels * height * width == source_size, "a plane does not fit its source")
        need(
            kh * kw <= MOST_WINDOW and size * kh * kw <= MOST_TERMS, "pooling windows are too large"
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

    def image(self, low: Row, high: Row) -> tuple[Row, Row]:
        """Output intervals, given those of the source."""
        return [max(low[e] for e in m) for m in self.members], [
            max(high[e] for e in m) for m in self.members
        ]

    @staticmethod
    def block(mu: int, slopes: Row, low: Row, high: Row) -> int:
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


def windows_of(node: dict[str, Any], reach: Row) -> Row:
    """How many windows of that extent fit below and beside each other; strides and padding are
    known to be numbers."""
    top, left, bottom, right = node["padding"]
    room = [
        h + p - r
        for h, p, r in zip(node["plane"], (top + bottom, left + right), reach, strict=True)
    ]
    return [r // s + 1 if r >= 0 else 0 for r, s in zip(room, node["strides"], strict=True)]


def conv_rows(
    node: dict[str, Any], source_size: int
) -> Iterator[tuple[list[tuple[int, int, int]], int]]:
    """The rows of a convolution, with the bias that padding contributes."""
    source, pad_value, groups = node["source"], integer(node["pad_value"]), integer(node["groups"])
    height, width = numbers(node["plane"], 2, "a plane", 1)
    sh, sw = numbers(node["strides"], 2, "strides", 1)
    dh, dw = numbers(node["dilations"], 2, "dilations", 1)
    top, left, _, _ = numbers(node["padding"], 4, "padding", 0)
    outs, out_h, out_w = numbers(node["shape"], 3, "the shape of an image", 1)
    weights, biases = node["weight"], numbers(node["bias"], outs, "the bias of a convolution")
    need(
        len(weights) == outs and groups > 0 and outs % groups == 0,
        "groups do not fit a convolution",
    )
    ins, kh, kw = len(weights[0]), len(weights[0][0]), len(weights[0][0][0])
    reach = [dh * (kh - 1) + 1, dw * (kw - 1) + 1]
    need(
        [out_h, out_w] == windows_of(node, reach),
        "a convolution does not have one output per window",
    )
    need(ins * groups * height * width == source_size, "a plane does not fit its source")
    need(
        outs * out_h * out_w * ins * kh * kw <= MOST_TERMS,
        f"a convolution has more than {MOST_TERMS} terms",
    )
    for weight in weights:
        need(
            len(weight) == ins and all(len(plane) == kh for plane in weight),
            "a kernel is not rectangular",
        )
        for line in (line for plane in weight for line in plane):
            numbers(line, kw, "a line of a kernel")
    for o, y, x in product(range(outs), range(out_h), range(out_w)):
        row, bias = [], biases[o]
        first = (o // (outs // groups)) * ins
        for c, plane in enumerate(weights[o]):
            for i, line in enumerate(plane):
                for j, weight in enumerate(line):
                    r, s = y * sh + i * dh - top, x * sw + j * dw - left
                    if 0 <= r < height and 0 <= s < width:
                        if weight:
                            row.append((source, ((first + c) * height + r) * width + s, weight))
                    else:
                        bias += weight * pad_value
        yield row, bias


class Network:
    """The canonical JSON form of an integer network, compiled; malformed ones raise (Reject,
    KeyError, TypeError, ...).

    ``low``/``high``: an interval for every element of every node, over the whole declared range of
    the input. ``terms``: how many weights, thresholds and window members there are, which is what
    one pass over the network costs.
    """

    def __init__(self, form: dict[str, Any]) -> None:
        need(form["format"] == "bitcrown-integer-network-1", "the network has an unknown format")
        self.nodes = form["nodes"]
        self.output = integer(form["output"])
        need(0 <= self.output < len(self.nodes), "the output is no node")
        self.sizes = [size_of(node["shape"]) for node in self.nodes]
        need(
            sum(self.sizes) <= MOST_ELEMENTS, f"the network has more than {MOST_ELEMENTS} elements"
        )
        self.compiled: list[Affine | Stairs | Pool | None] = []
        self.terms = 0
        for number, node in enumerate(self.nodes):
            self.compiled.append(self._compile(number, node))
            self.terms += self._terms(self.compiled[-1])
            need(
                self.terms <= MOST_TERMS,
                f"the network has more than {MOST_TERMS} weights and thresholds",
            )
        first = self.nodes[0]
        self.low = [numbers(first["low"], self.sizes[0], "the low end of the input")]
        self.high = [numbers(first["high"], self.sizes[0], "the high end of the input")]
        need(
            all(a <= b for a, b in zip(self.low[0], self.high[0], strict=True)),
            "the input has an empty range",
        )
        for step in self.compiled[1:]:
            assert step is not None
            if isinstance(step, Affine):
                ends = step.ends(self.low, self.high), step.ends(self.high, self.low)
            else:
                ends = step.image(self.low[step.source], self.high[step.source])
            self.low.append(ends[0])
            self.high.append(ends[1])
        for step in self.compiled[1:]:
            if isinstance(step, Stairs):
                self._require_order(step)

    def _require_order(self, step: Stairs) -> None:
        """Early thresholds behind late ones only where no accumulator lies: wherever one does, a
        value has to exist.

        Elements with the same thresholds and factors are looked at together, over all of their
        ranges.
        """
        found: dict[tuple[Any, ...], list[range]] = {}
        first: dict[tuple[Any, ...], int] = {}
        for e, (early, late) in enumerate(zip(step.early, step.late, strict=True)):
            if early is late or all(a <= b for a, b in zip(early, late, strict=True)):
                continue
            parts, constant = self._summands(step.source, e)
            key = id(early), id(late), tuple(f for f, _ in parts), constant
            wide = found.get(key, [part for _, part in parts])
            found[key] = [
                range(min(r.start, part.start), max(r.stop, part.stop))
                for r, (_, part) in zip(wide, parts, strict=True)
            ]
            first.setdefault(key, e)
        for key, ranges in found.items():
            need(
                prod(map(len, ranges)) <= MOST_SUMS, "an early threshold is later than the late one"
            )
            early, late = step.early[first[key]], step.late[first[key]]
            for summands in product(
                *([f * v for v in r] for f, r in zip(key[2], ranges, strict=True))
            ):
                a = key[3] + sum(summands)
                fits = bisect_right(late, a) <= bisect_right(early, a)
                need(fits, f"an early threshold is later than the late one at the accumulator {a}")

    def _summands(self, number: int, e: int) -> tuple[list[tuple[int, range]], int]:
        """Factors and ranges whose sums, with a constant, are all that one element of a sum can
        be."""
        factor, constant = 1, 0  # the element is factor * (element e of node number) + constant
        while True:
            step = self.compiled[number]
            if not isinstance(step, Affine) or self.nodes[number]["op"] != "sum":
                terms = [(number, e, 1)]
                break
            constant += factor * step.bias[e]
            terms = step.rows[e]
            if len(terms) != 1:
                break
            ((number, e, weight),) = terms
            factor *= weight
        return [
            (factor * w, range(self.low[s][i], self.high[s][i] + 1)) for s, i, w in terms
        ], constant

    @staticmethod
    def _terms(step: Affine | Stairs | Pool | None) -> int:
        if isinstance(step, Affine):
            return len(step.rows) + sum(map(len, step.rows))
        if isinstance(step, Stairs):
            return len(step.late) + 2 * sum(map(len, step.late))
        return sum(len(m) ** 2 for m in step.members) if step is not None else 0

    def _compile(self, number: int, node: dict[str, Any]) -> Affine | Stairs | Pool | None:
        op, size = node["op"], self.sizes[number]
        need((op == "input") == (number == 0), "node 0, and no other, is the input")
        if op == "input":
            return None
        sources = node["sources"] if op in ("sum", "gather") else [node["source"]]
        need(
            all(0 <= integer(s) < number for s in sources) and len(sources) > 0,
            "a node reads one that comes later",
        )
        if op == "staircase":
            need(self.sizes[sources[0]] == size, "a staircase has another size than its source")
            return Stairs(node, size)
        if op == "maxpool":
            return Pool(node, size, self.sizes[sources[0]])
        rows: list[list[tuple[int, int, int]]]
        if op == "dense":
            need(
                len(node["weight"]) == size,
                "an affine node has another number of rows than outputs",
            )
            lines = [numbers(line, len(line), "a row of weights") for line in node["weight"]]
            need(
                all(len(line) <= self.sizes[sources[0]] for line in lines),
                "an affine node reads beyond its source",
            )
            rows = [[(sources[0], e, w) for e, w in enumerate(line) if w] for line in lines]
            bias = numbers(node["bias"], size, "a bias")
        elif op == "conv":
            pairs = list(conv_rows(node, self.sizes[sources[0]]))
            rows, bias = [row for row, _ in pairs], [b for _, b in pairs]
        elif op == "sum":
            factors = numbers(node["factors"], len(sources), "the factors of a sum")
            need(
                all(self.sizes[s] == size for s in sources),
                "a sum has another size than its sources",
            )
            rows = [
                [(s, e, f) for s, f in zip(sources, factors, strict=True) if f] for e in range(size)
            ]
            bias = node["bias"] * size if len(node["bias"]) == 1 else node["bias"]
            bias = numbers(bias, size, "a bias")
        else:
            need(op == "gather", f"unknown node {op!r}")
            places = [(s, e) for s in sources for e in range(self.sizes[s])]
            index = numbers(node["index"], size, "an index", 0)
            need(max(index) < len(places), "an affine node reads beyond its source")
            rows, bias = [[(*places[i], 1)] for i in index], [0] * size
        need(len(rows) == size, "an affine node has another number of rows than outputs")
        return Affine(rows, bias, set(sources))

    def outputs(self, point: Row) -> tuple[Row, Row]:
        """The output at one input, as an interval (one value wherever the arithmetic is pinned
        down)."""
        low, high = [point], [point]
        for step in self.compiled[1:]:
            if isinstance(step, Affine):
                ends = step.ends(low, high), step.ends(high, low)
            else:
                assert step is not None
                ends = step.image(low[step.source], high[step.source])
            low.append(ends[0])
            high.append(ends[1])
        return low[self.output], high[self.output]


class State:
    """``low[n][e]``/``high[n][e]``; lists are replaced, never changed, so that a copy is cheap."""

    def __init__(self, low: list[Row], high: list[Row], dirty: set[int]) -> None:
        self.low, self.high, self.dirty = low, high, dirty

    def copy(self) -> State:
        return State(list(self.low), list(self.high), set(self.dirty))

    def meet(self, node: int, low: Row, high: Row) -> None:
        old = self.low[node], self.high[node]
        new = (
            [max(a, b) for a, b in zip(old[0], low, strict=True)],
            [min(a, b) for a, b in zip(old[1], high, strict=True)],
        )
        if new != old:
            self.low[node], self.high[node] = new
            self.dirty.add(node)

    def narrow(self, node: int, element: int, low: int | None, high: int | None) -> None:
        """One interval cut at either end; ``None`` leaves an end as it is."""
        lows, highs = list(self.low[node]), list(self.high[node])
        lows[element] = lows[element] if low is None else max(lows[element], low)
        highs[element] = highs[element] if high is None else min(highs[element], high)
        self.low[node], self.high[node] = lows, highs
        self.dirty.add(node)

    def is_empty(self) -> bool:
        return any(
            a > b
            for lows, highs in zip(self.low, self.high, strict=True)
            for a, b in zip(lows, highs, strict=True)
        )
