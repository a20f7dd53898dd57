"""Rows of a backward pass in single precision, and how each operator is passed.

A row is one element of ``source``, from below or from above. Coefficients of image nodes lie as
``[h, w, S, C]``: what a kernel offset shifts are whole matrices ``[S, C]``, so the adjoint of a
convolution is one matrix product per offset, added up in place, without copies of pixels and
without products with padding. ``h x w`` is the row's window (``windows``), at a place of its own
for every row, or the whole image. Coefficients of other nodes are ``[S, *]``.

Legend: ``S`` rows, ``C`` (``O``) channels, ``H x W`` pixels, ``*`` a node's shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bitcrown.bounds.centred.bilinear import sums_of
from bitcrown.bounds.centred.kernels import taps_adjoint, turned_adjoint
from bitcrown.bounds.centred.measures import Reference, share
from bitcrown.bounds.centred.windows import (
    Window,
    geometry_of,
    is_image,
    moves_channels,
    seen_by,
    turned_geometry_of,
)
from bitcrown.bounds.shares import adds_up, common_part
from bitcrown.model.execute import elements
from bitcrown.model.graph import Node

_COARSE = 2.0**-9
"""Share of an error that adding it up may add to it."""
_VECTORS = ("constant", "error", "spread", "place", "number")


@dataclass
class RowState:
    """``pending`` holds ``a_p``, ``[h, w, S, C]`` or ``[S, *]``; ``constant``, ``error`` and
    ``spread`` are ``[S]``, double; ``place [S, 2]`` is where each row begins, ``number [S]`` which
    one it is. Coefficients of nodes in ``loose`` may be other than zero outside of the image.

    Rows that are ``shared`` bound their quantity from both sides:
    it is within ``error + spread`` of ``sum_p <a_p, z_p - c_p> + constant``."""

    pending: dict[str, Tensor]
    constant: Tensor
    error: Tensor
    spread: Tensor
    place: Tensor
    number: Tensor
    is_shared: bool
    loose: set[str] = field(default_factory=set)

    def part(self, index: Tensor | slice, images: Mapping[str, bool]) -> RowState:
        """The rows ``index``."""
        pending = {
            name: a[:, :, index] if images[name] else a[index] for name, a in self.pending.items()
        }
        vectors: dict[str, Any] = {name: getattr(self, name)[index] for name in _VECTORS}
        return replace(self, pending=pending, loose=set(self.loose), **vectors)

    @staticmethod
    def joined(states: Sequence[RowState], images: Mapping[str, bool]) -> RowState:
        """All rows of states that stand at the same node."""
        if len(states) == 1:
            return states[0]
        pending = {
            name: torch.cat([state.pending[name] for state in states], 2 if images[name] else 0)
            for name in states[0].pending
        }
        vectors: dict[str, Any] = {
            name: torch.cat([getattr(state, name) for state in states]) for name in _VECTORS
        }
        loose = {name for state in states for name in state.loose}
        return replace(states[0], pending=pending, loose=loose, **vectors)


def row_sums(node: Node, value: Tensor) -> Tensor:
    """``value`` of ``node`` added up for each row, ``[S]``, in double precision. (Pixels first,
    where neighbours in memory belong to different sums: many times as fast as all axes at once.)"""
    if is_image(node):
        return value.sum((0, 1), dtype=torch.float64).sum(-1)
    return value.sum(tuple(range(1, value.dim())), dtype=torch.float64)


class Maps:
    """Tensors of image nodes as the rows of a pass see them: cut to their windows, zero outside."""

    def __init__(self, windows: Mapping[str, Window | None], extents: tuple[int, int]) -> None:
        self.windows, self.extents = windows, extents
        self._padded: dict[tuple[str, str], list[Tensor]] = {}
        self._asked: tuple[Tensor, bool] | None = None

    def seen(self, node: Node, kind: str, parts: Sequence[Tensor], place: Tensor) -> list[Tensor]:
        """``parts [H, W, C]`` of ``node`` as ``[h, w, S or 1, C]``; ``kind`` names them."""
        window = self.windows[node.name]
        if window is None:
            return [part.unsqueeze(2) for part in parts]
        key = (node.name, kind)
        if key not in self._padded:
            self._padded[key] = [self._pad(part, window) for part in parts]
        padded = self._padded[key]
        if self.is_one_place(place):
            (top, bottom), (left, right) = (
                (first, first + window.extents[axis])
                for axis, at in enumerate(place[0].tolist())
                for first in (window.stride[axis] * at + max(window.low[axis], 0),)
            )
            return [part[top:bottom, left:right].unsqueeze(2) for part in padded]
        rows, columns = (
            window.stride[axis] * place[:, axis]
            + torch.arange(window.extents[axis], device=place.device).unsqueeze(1)
            + max(window.low[axis], 0)
            for axis in (0, 1)
        )
        index = rows.unsqueeze(1) * padded[0].shape[1] + columns.unsqueeze(0)
        flat = index.flatten()
        return [part.flatten(0, 1)[flat].reshape(*index.shape, -1) for part in padded]

    def is_one_place(self, place: Tensor) -> bool:
        """Whether all rows see the same window (asked on a CPU alone: a GPU would have to wait).
        Asked for every node that the same rows pass."""
        if self._asked is None or self._asked[0] is not place:
            is_one = place.device.type == "cpu" and len(place) > 0
            self._asked = place, is_one and bool((place == place[:1]).all())
        return self._asked[1]

    def _pad(self, value: Tensor, window: Window) -> Tensor:
        sides = []
        for axis in (1, 0):
            last = window.stride[axis] * (self.extents[axis] - 1) + window.high[axis]
            sides += [max(-window.low[axis], 0), max(last - value.shape[axis], 0)]
        return torch.nn.functional.pad(value, [0, 0, *sides])

    def spread(self, a: Tensor, node: Node, window: Window, place: Tensor) -> Tensor:
        """``a [h, w, S, C]`` over ``window`` of ``node`` as ``[H, W, S, C]``; what hangs over the
        edge is dropped."""
        tall, broad, count, channels = a.shape
        axes = []
        for axis in (0, 1):
            pixel = torch.arange(node.shape[2 + axis], device=a.device).unsqueeze(1)
            axes.append(pixel - (window.stride[axis] * place[:, axis] + window.low[axis]))
        (y, x), rows = axes, torch.arange(count, device=a.device)
        y, x = y.unsqueeze(1), x.unsqueeze(0)
        is_inside = (y >= 0) & (y < tall) & (x >= 0) & (x < broad)
        index = torch.where(is_inside, (y * broad + x) * count + rows, a.shape[:3].numel())
        rows_of = torch.cat([a.reshape(-1, channels), a.new_zeros(1, channels)])
        return rows_of[index.flatten()].reshape(*index.shape, channels)


class RowStep:
    """How the nodes of ``reference.network`` are passed by rows over ``windows``, which have
    ``extents`` places."""

    def __init__(
        self,
        reference: Reference,
        windows: Mapping[str, Window | None],
        source: Node,
        extents: tuple[int, int],
    ) -> None:
        self.reference, self.windows = reference, windows
        self.maps = Maps(windows, extents)
        self.nodes = reference.network.graph.nodes
        self._weights: dict[str, Tensor] = {}
        graph = reference.network.graph
        self.sums = sums_of(graph, windows, reference.of, source)

    def cost(self, node: Node, a: Tensor, kind: str, of: Tensor, place: Tensor) -> Tensor:
        """``<|a|, of>`` of each row, rounded up, for ``of`` >= 0 of ``node``: ``[S]``, double.

        An error may be a thousandth too large, so it is added up in single precision: ``k``
        terms that are not negative lose ``gamma_k`` of their sum, and what underflows."""
        (part,) = self._seen(node, kind, [of], place)
        terms = node.size if self.windows[node.name] is None else a.numel() // max(1, a.shape[2])
        lost = share(terms + 8)
        if kind != "loss" or lost > _COARSE:
            return row_sums(node, a.abs() * part) * (1 + 2.0**-20)
        if is_image(node):
            total = (a.abs() * part).sum((0, 1)).sum(-1)
        else:
            total = torch.matmul(elements(a.abs(), 1), part.flatten())
        return total.double() * (1 + 2 * lost) + terms * torch.finfo(torch.float32).tiny

    def operands(self, node: Node) -> Sequence[str]:
        """The nodes whose coefficients ``run`` gives: what ``node`` reads, or what that repeats."""
        if node.name not in self.sums:
            return node.inputs
        return [base.name for base in self.sums[node.name].bases]

    def run(self, node: Node, a: Tensor, state: RowState) -> list[Tensor]:
        """Coefficients of the ``operands`` of ``node``, whose own ``a`` they replace; constant and
        error of ``state`` grow."""
        measures = self.reference.of[node.name]
        if adds_up(node) and not state.is_shared:
            a = self._without_common_part(node, a, state)
        if not measures.is_exact:
            state.error = state.error + self.cost(node, a, "loss", measures.loss, state.place)
        if node.name in self.sums:
            parts, gained, lost = self.sums[node.name].run(a)
            state.constant, state.error = state.constant + gained, state.error + lost
            return parts
        is_loose = node.name in state.loose
        if measures.lines:
            return self._nonlinear(node, a, state)
        if is_loose and self.windows[node.name] is not None:
            inside = torch.ones(*node.shape[2:], 1, dtype=a.dtype, device=a.device)
            a = a * self.maps.seen(node, "inside", [inside], state.place)[0]
        return self._affine(node, a, state)

    def _affine(self, node: Node, a: Tensor, state: RowState) -> list[Tensor]:
        window = self.windows[node.name]
        if node.op == "Constant":
            return []
        if node.op in ("Conv", "AveragePool") and is_image(node):
            (name,) = node.inputs
            part = self._convolution(node, a, state)
            if self.windows[name] is not None:
                state.loose.add(name)
            return [part]
        if turned_geometry_of(node) is not None:
            return [self._turned(node, a, state)]
        if node.op == "Pad" and window is not None:
            state.loose.add(node.inputs[0])
            return [self._moved(a, node.inputs[0], seen_by(node, window), state)]
        if moves_channels(node, self.nodes[node.inputs[0]]):
            parts = self._channels(node, a)
        elif any(self.nodes[name].shape != node.shape for name in node.inputs):
            return self._general(node, a)
        elif node.op in ("Add", "Sub"):
            parts = [a, -a if node.op == "Sub" else a]
        elif node.op == "Scale" and is_image(node):
            parts = [self._scaled(node, a, state)]
        else:
            return self._general(node, a)
        return [
            self._moved(part, name, window, state)
            for part, name in zip(parts, node.inputs, strict=True)
        ]

    def _without_common_part(self, node: Node, a: Tensor, state: RowState) -> Tensor:
        """``a`` minus what lines that add up to 1 have in common (``shares``): measured from the
        centres, their sum is as far from zero as that of the centres is from 1, the ``excess``."""
        measures = self.reference.of[node.name]
        assert measures.excess is not None
        upper, difference = self._seen(node, "lines", measures.lines, state.place)[:2]
        common = common_part(a, upper, difference, 1 if is_image(node) else -1)
        state.error = state.error + self.cost(node, common, "excess", measures.excess, state.place)
        return a - common

    def _scaled(self, node: Node, a: Tensor, state: RowState) -> Tensor:
        if "scale" not in node.params:
            return a
        scale = self.reference.single.params[node.name]["scale"].expand(1, *node.shape)
        factor = scale[0, 0].permute(1, 2, 0)
        return a * self.maps.seen(node, "scale", [factor], state.place)[0]

    def _moved(self, a: Tensor, name: str, window: Window | None, state: RowState) -> Tensor:
        """``a`` over ``window`` of a node as coefficients of an operand of its shape."""
        target = self.windows[name]
        if window is None or target == window:
            return a
        if target is None:
            return self.maps.spread(a, self.nodes[name], window, state.place)
        out = a.new_zeros(*target.extents, *a.shape[2:])
        y, x = window.low[0] - target.low[0], window.low[1] - target.low[1]
        out[y : y + a.shape[0], x : x + a.shape[1]] = a
        return out

    def _nonlinear(self, node: Node, a: Tensor, state: RowState) -> list[Tensor]:
        """``a (f - c) >= a (s (y - c_y) + o)``, the lower line where ``a`` is positive, else the
        upper one: ``a upper + max(a, 0) (lower - upper)``."""
        measures = self.reference.of[node.name]
        if state.is_shared:
            upper, middle, half = self._seen(node, "band", measures.band, state.place)
            spread = row_sums(node, a.abs() * half)
            state.spread = state.spread + spread * (1 + 2.0**-20)
            state.constant = state.constant + row_sums(node, a * middle)
            return [self._moved(a * upper, node.inputs[0], self.windows[node.name], state)]
        lines = self._seen(node, "lines", measures.lines, state.place)
        positive = a.clamp(min=0)
        window = self.windows[node.name]
        *slopes, (above, gap) = zip(lines[0::2], lines[1::2], strict=True)
        parts = [
            a * upper if measures.is_parallel else (a * upper).addcmul_(positive, rise)
            for upper, rise in slopes
        ]
        state.constant = state.constant + row_sums(node, (a * above).addcmul_(positive, gap))
        return [
            self._moved(part, name, window, state)
            for part, name in zip(parts, node.inputs, strict=True)
        ]

    def _seen(
        self, node: Node, kind: str, parts: Sequence[Tensor], place: Tensor
    ) -> Sequence[Tensor]:
        return self.maps.seen(node, kind, parts, place) if is_image(node) else parts

    def _convolution(self, node: Node, a: Tensor, state: RowState) -> Tensor:
        (name,) = node.inputs
        window, target = self.windows[node.name], self.windows[name]
        operand = self.nodes[name]
        behind, geometry = (a.shape[2], operand.shape[1]), geometry_of(node)
        assert geometry is not None
        if node.op == "Conv":
            weight = self._weight(node)
        else:
            weight, a = None, a * (1.0 / math.prod(geometry.kernel))
        if window is None:
            at = -geometry.pads[0], -geometry.pads[1]
            return taps_adjoint(a, weight, geometry, at, a.new_zeros(*operand.shape[2:], *behind))
        seen = seen_by(node, window)
        assert seen is not None
        over = seen if target is None else target
        at = seen.low[0] - over.low[0], seen.low[1] - over.low[1]
        out = taps_adjoint(a, weight, geometry, at, a.new_zeros(*over.extents, *behind))
        return out if target is not None else self.maps.spread(out, operand, seen, state.place)

    def _channels(self, node: Node, a: Tensor) -> list[Tensor]:
        """Coefficients of what whole channels were put together from, or taken of."""
        channels = [self.nodes[name].shape[1] for name in node.inputs]
        if node.op == "Concat":
            return list(torch.split(a, channels, dim=3))
        first, end, _ = node.attrs["slices"][1]
        return [torch.nn.functional.pad(a, (first, channels[0] - end))]

    def _turned(self, node: Node, a: Tensor, state: RowState) -> Tensor:
        """The adjoint of a transposed convolution."""
        (name,) = node.inputs
        window, target, operand = self.windows[node.name], self.windows[name], self.nodes[name]
        geometry = turned_geometry_of(node)
        assert geometry is not None
        over = target or (None if window is None else seen_by(node, window))
        extents = operand.shape[2:] if over is None else over.extents
        first, begin = ((0, 0) if part is None else part.low for part in (over, window))
        out = a.new_zeros(*extents, a.shape[2], operand.shape[1])
        turned_adjoint(a, self._weight(node), geometry, (first, begin), out)
        if over is None:
            return out
        if target is None:
            return self.maps.spread(out, operand, over, state.place)
        state.loose.add(name)
        return out

    def _weight(self, node: Node) -> Tensor:
        """``[k, k', groups, O / groups, C / groups]``, ``O`` being the channels of ``node``."""
        if node.name not in self._weights:
            weight = self.reference.single.params[node.name]["weight"]
            if node.op == "ConvTranspose":
                self._weights[node.name] = weight.permute(2, 3, 1, 0).unsqueeze(2).contiguous()
                return self._weights[node.name]
            groups = node.attrs["group"]
            parts = weight.reshape(groups, -1, *weight.shape[1:])
            self._weights[node.name] = parts.permute(3, 4, 0, 1, 2).contiguous()
        return self._weights[node.name]

    def _general(self, node: Node, a: Tensor) -> list[Tensor]:
        """Any other affine operator, by the adjoint of its row, over whole tensors."""
        flat = a.permute(2, 3, 0, 1).unsqueeze(1) if is_image(node) else a
        parts = self.reference.single.adjoint(node, flat.contiguous())
        return [
            part[:, 0].permute(2, 3, 0, 1).contiguous() if is_image(self.nodes[name]) else part
            for name, part in zip(node.inputs, parts, strict=True)
        ]
