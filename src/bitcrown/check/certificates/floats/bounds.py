"""Rigorous linear bounds by backward substitution, in numpy float64, with the rounding error taken
off.

**What is bounded.** ``sum_p <a_p, z_p> + constant`` over nodes ``p`` is rewritten from the last
node to the first. The invariant, for every ``x`` of the box (and, with multipliers, every ``x``
whose signs are those of the domain):

    quantity >= sum over nodes p not yet passed of <a_p, z_p> + constant - error.

An affine node ``z = A y + b`` is passed by the transpose: ``<a, z> = <A^T a, y> + <a, b>``. For
ReLU on ``[l, u]``,

    alpha z <= relu(z)            for every alpha in [0, 1], relu(z) <= s z + t            for every
    s, if t >= max(-s l, (1 - s) u) and l <= 0 <= u  (convexity: ends decide),

the first where the coefficient is positive, the second where it is negative; ``relu(z) = z`` for
``l >= 0``, ``0`` for ``u <= 0``. A decision ``sigma z >= 0`` of a domain allows to subtract
``beta sigma z`` for every ``beta >= 0``. In the end ``<a, x> >= <a, c> - <|a|, r>`` on a box with
centre ``c`` and radius ``r``.

**Rounding.** A computed sum of ``k`` products differs from the exact one by at most
``g sum |a_i| |b_i|``, ``g = k u / (1 - k u)``, in any order of summation, with or without fused
products (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); here one ``k`` exceeds every
sum that is formed. So passing node ``p`` costs at most ``g <|a_p|, reach_p>`` where ``reach_p`` is
an upper bound of ``|A| |y| + |b|`` (for ReLU of ``2 |z|``) on the root's box: one inner product a
node. Coefficients put in from outside (rows, multipliers) cost ``g <|a_p|, |z_p|>`` as they are
added. Underflow is covered by ``dust``, an absolute term a step. The sum of these errors has
non-negative terms, so its own relative error is tiny; a factor ``1 + 1e-6`` covers it.

A bound that is NaN or infinite is no bound: ``proves`` is False for it. Legend: ``B`` boxes or
domains, ``S`` rows, ``N`` neurons of a ReLU, ``n`` inputs. A leading extent 1 stands for "the same
for every box".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bitcrown.check.certificates.floats.crops import Crop
from bitcrown.check.certificates.floats.nodes import (
    AffineMap,
    FloatArray,
    FloatNetwork,
    InputNode,
    ReluNode,
)
from bitcrown.errors import ModelError

UNIT_ROUNDOFF64 = 2.0**-53
UNDERFLOW = 2.0**-960
_SLACK = 1.0 + 1e-6
LARGEST_VALUE = 1e30
"""Values beyond are refused; so limits of a Clip that are larger still are none."""
PASS_ENTRIES = 1 << 21
"""Entries of the widest array of one backward pass."""


class ReluLine(NamedTuple):
    """ReLU of one node: ``lower z <= relu(z) <= upper z + offset``; arrays
    ``[1 or B, 1 or S, N]``."""

    lower: FloatArray
    upper: FloatArray
    offset: FloatArray


class LineBounds(NamedTuple):
    """``quantity >= coefficient x + constant - error``: ``[B, S, n]``, ``[B, S]``, ``[B, S]``."""

    coefficient: FloatArray
    constant: FloatArray
    error: FloatArray


@dataclass(frozen=True)
class BoxBatch:
    """``lower``/``upper [B, n]``."""

    lower: FloatArray
    upper: FloatArray

    def centre(self) -> FloatArray:
        """Inside the box, whatever was rounded."""
        return np.clip(0.5 * self.lower + 0.5 * self.upper, self.lower, self.upper)

    def radius(self, centre: FloatArray) -> FloatArray:
        """At least the distance from ``centre`` to either end: the greater difference, one float
        up."""
        return np.nextafter(np.maximum(self.upper - centre, centre - self.lower), np.inf)

    def reach(self) -> FloatArray:
        return np.maximum(np.abs(self.lower), np.abs(self.upper))


OperandBounds = dict[int, tuple[FloatArray, FloatArray]]
"""Bounds ``[1 or B, N]`` of the operand of each ReLU, by the number of the ReLU."""


class Bounder:
    """Bounds of one network over boxes inside ``root`` (one box). Raises ``ModelError`` where
    intervals overflow.

    ``poll`` is called at every step, so that a caller may raise an error when time is up.
    """

    def __init__(
        self, network: FloatNetwork, root: BoxBatch, poll: Callable[[], None] = lambda: None
    ) -> None:
        self.network, self.poll = network, poll
        longest = max(max(node.size, node.terms) for node in network.nodes)
        k = 4.0 * (longest + len(network.nodes)) + 256.0
        self.gamma = k * UNIT_ROUNDOFF64 / (1.0 - k * UNIT_ROUNDOFF64)
        if not self.gamma < 1e-7:
            raise ModelError("certificates: the network is too large for float64 sums")
        self.dust = UNDERFLOW
        """More than all underflows of one step amount to: below 2^50 products, each wrong by less
        than 2^-1022."""
        self.size: list[FloatArray] = [np.zeros(0)] * len(network.nodes)
        """Upper bounds ``[N]`` of ``|z|`` on the root's box."""
        self.reach: list[FloatArray] = [np.zeros(0)] * len(network.nodes)
        with np.errstate(all="ignore"):
            self._measure(root)
        self.is_behind_relu = [False] * len(network.nodes)
        for number, node in enumerate(network.nodes):
            self.is_behind_relu[number] = isinstance(node, ReluNode) or any(
                self.is_behind_relu[s] for s in node.sources
            )

    def _measure(self, root: BoxBatch) -> None:
        """Sizes and reaches from plain intervals over the root's box."""
        low: list[FloatArray] = []
        up: list[FloatArray] = []
        for number, node in enumerate(self.network.nodes):
            if isinstance(node, InputNode):
                self.reach[number] = root.reach()[0]
                low.append(root.lower)
                up.append(root.upper)
            elif isinstance(node, ReluNode):
                source = node.sources[0]
                self.reach[number] = 2.0 * self.size[source] * _SLACK
                low.append(np.maximum(low[source], 0.0))
                up.append(np.maximum(up[source], 0.0))
            else:
                sizes = [self.size[source][None] for source in node.sources]
                whole = node.forward(sizes, is_absolute=True)[0] + np.abs(node.bias)
                self.reach[number] = whole * _SLACK + UNDERFLOW
                ends = self._interval(number, node, [(low[s], up[s]) for s in node.sources])
                low.append(ends[0])
                up.append(ends[1])
            self.size[number] = np.maximum(np.abs(low[-1]), np.abs(up[-1]))[0]
        self.dust = UNDERFLOW * (1.0 + max(float(part.max(initial=0.0)) for part in self.size))
        if not all((part < LARGEST_VALUE).all() for part in self.reach + self.size):
            raise ModelError(
                f"certificates: values inside the network exceed {LARGEST_VALUE:g}, too much for "
                "float64 sums"
            )

    def _interval(
        self, number: int, node: AffineMap, ends: list[tuple[FloatArray, FloatArray]]
    ) -> tuple[FloatArray, FloatArray]:
        """``A c + b -+ (|A| r + error)``: forming either sum costs at most ``2 g reach``."""
        boxes = [BoxBatch(low, up) for low, up in ends]
        centres = [box.centre() for box in boxes]
        middle = node.forward(centres) + node.bias
        spread = node.forward(
            [box.radius(c) for box, c in zip(boxes, centres, strict=True)], is_absolute=True
        )
        error = (8.0 * self.gamma * self.reach[number] + self.dust) * _SLACK
        return middle - (spread + error), middle + (spread + error)

    def intervals(
        self, box: BoxBatch, known: OperandBounds, until: int
    ) -> tuple[FloatArray, FloatArray]:
        """Interval ``[B, N]`` of the node ``until``, from the ``known`` bounds of earlier ReLU
        operands."""
        found: dict[int, tuple[FloatArray, FloatArray]] = {}
        for number, node in enumerate(self.network.nodes[: until + 1]):
            if isinstance(node, InputNode):
                found[number] = (box.lower, box.upper)
            elif isinstance(node, ReluNode):
                low, up = known[number]
                found[number] = (np.maximum(low, 0.0), np.maximum(up, 0.0))
            else:
                found[number] = self._interval(
                    number, node, [found[source] for source in node.sources]
                )
        return found[until]

    def within(self, crop: Crop) -> Bounder:
        """The bounder of a crop, whose elements have the sizes and reaches that they have here."""
        part = copy(self)
        part.network = crop.network
        part.size = [self.size[number][kept] for number, kept in crop.origin]
        part.reach = [self.reach[number][kept] for number, kept in crop.origin]
        return part

    # -- backward ----------------------------------------------------------------------------------

    def backward(
        self,
        seeds: Mapping[int, FloatArray],
        lines: Mapping[int, ReluLine],
        multipliers: Mapping[int, FloatArray] | None = None,
        record: dict[int, FloatArray] | None = None,
    ) -> LineBounds:
        """Lines of ``sum <seed, z>``; ``seeds`` ``[1 or B, S, N]``, ``multipliers``:
        ``beta sigma [B, N]`` by ReLU.

        ``record`` receives the coefficient ``[B, S, N]`` with which each ReLU was met.
        """
        pending = {number: np.asarray(seed) for number, seed in seeds.items()}
        first = next(iter(pending.values()))
        shape = (max(seed.shape[0] for seed in pending.values()), first.shape[1])
        constant, error = np.zeros(shape), np.zeros(shape)
        for number, seed in pending.items():
            error = error + self._cost(seed, self.size[number])
        for number in range(len(self.network.nodes) - 1, 0, -1):
            self.poll()
            node = self.network.nodes[number]
            a = pending.pop(number, None)
            if isinstance(node, ReluNode):
                source = node.sources[0]
                signed = None if multipliers is None else multipliers.get(number)
                if a is not None:
                    if record is not None:
                        record[number] = a
                    error = error + self._cost(a, self.reach[number])
                    part, shift = _pass_relu(a, lines[number])
                    constant = constant + shift
                    _add(pending, source, part)
                if signed is not None:
                    error = error + self._cost(signed[:, None, :], self.size[source])
                    _add(pending, source, -signed[:, None, :])
            elif a is not None:
                assert not isinstance(node, InputNode)
                error = error + self._cost(a, self.reach[number])
                if node.bias.any():
                    constant = constant + a @ node.bias
                rows = a.shape[:2]
                for source, part in zip(
                    node.sources, node.adjoint(a.reshape(-1, node.size)), strict=True
                ):
                    _add(pending, source, part.reshape(*rows, -1))
        last = pending.get(0, np.zeros((1, shape[1], self.network.n_inputs)))
        count = max(len(last), len(constant))
        spread = [
            np.broadcast_to(part, (count, *part.shape[1:])) for part in (last, constant, error)
        ]
        return LineBounds(*spread)

    def _cost(self, a: FloatArray, scale: FloatArray) -> FloatArray:
        """``g <|a|, scale>`` and the underflow of as many products."""
        return self.gamma * (np.abs(a) @ scale) + self.dust

    def least(self, lines: LineBounds, box: BoxBatch) -> FloatArray:
        """Lower bounds ``[B, S]`` of the lines over the boxes; NaN and infinities are possible and
        prove nothing."""
        centre = box.centre()
        a = lines.coefficient
        size = np.abs(a)
        middle = np.matmul(a, centre[:, :, None])[..., 0]
        swing = np.matmul(size, box.radius(centre)[:, :, None])[..., 0]
        reach = np.matmul(size, box.reach()[:, :, None])[..., 0]
        error = lines.error + 4.0 * self.gamma * (reach + np.abs(lines.constant)) + self.dust
        result: FloatArray = lines.constant + middle - swing - error * _SLACK
        return result


def _add(pending: dict[int, FloatArray], number: int, part: FloatArray) -> None:
    pending[number] = pending[number] + part if number in pending else part


def _pass_relu(a: FloatArray, line: ReluLine) -> tuple[FloatArray, FloatArray]:
    """Coefficients on the operand, and the constant ``<a^-, offset>``."""
    negative = np.minimum(a, 0.0)
    shift = np.einsum("bsn,bsn->bs", *np.broadcast_arrays(negative, line.offset))
    return a * np.where(a > 0, line.lower, line.upper), shift


def relu_line(low: FloatArray, up: FloatArray, slope: FloatArray | None = None) -> ReluLine:
    """The line of ReLU on ``[low, up]`` ``[B, S, N]``; ``slope`` for undecided neurons (default: 0
    or 1).

    ``below`` and ``above`` are ``-min(l, 0)`` and ``max(u, 0)``, so decided neurons come out exact
    without a branch. The offset is inflated by more than the roundings of its two products and of
    ``1 - s``; a slope is clipped to ``[0, 1]``, and one that is NaN stays NaN and proves nothing.
    """
    below, above = -np.minimum(low, 0.0), np.maximum(up, 0.0)
    with np.errstate(all="ignore"):
        width = below + above
        chord = np.clip(np.where(width > 0, above / np.where(width > 0, width, 1.0), 0.0), 0.0, 1.0)
        is_open = (below > 0) & (above > 0)
        offset = np.maximum(chord * below, (1.0 - chord) * above) * (
            1.0 + 16 * UNIT_ROUNDOFF64
        ) + np.where(is_open, UNDERFLOW, 0.0)
    offset = np.where(is_open, offset, np.where(np.isnan(width), np.nan, 0.0))
    chord = np.where(is_open, chord, (above > 0).astype(np.float64))
    default = (above > below).astype(np.float64)
    given = default if slope is None else np.clip(slope, 0.0, 1.0)
    lower = np.where(is_open, given, (above > 0).astype(np.float64))
    return ReluLine(lower, chord, offset)


def proves(value: FloatArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where ``value`` is a finite number above zero."""
    return np.asarray(np.isfinite(value) & (value > 0), dtype=bool)


def greater_bound(low: FloatArray, other: FloatArray) -> FloatArray:
    """The greater of two valid lower bounds; a bound that is no number is none."""
    return np.where(np.isfinite(other) & (other > low), other, low)
