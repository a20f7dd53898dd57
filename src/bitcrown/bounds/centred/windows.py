"""Which rectangle of every earlier layer an element of a convolutional layer depends on, for all
its positions at once.

The element at row ``y`` depends on rows ``stride y + low`` to ``stride y + high`` (exclusive) of an
earlier node, padding included (Araujo et al., "Computing Receptive Fields of Convolutional Neural
Networks", 2019), and likewise for columns. So rows of a backward pass that begin at different
positions of one layer have coefficients of one shape, each with a place of its own, and go through
the same products. Where such a window would be about as large as the image, or where an operator
looks at more than windows, coefficients are those of the whole node (``None``).

A transposed convolution of stride ``s`` reads rows ``(y + p - d i) / s`` where these are whole
numbers: which ones depends on ``y`` modulo ``s``, the *phase*. So elements are taken phase by
phase: those at rows ``period t + phase`` have windows at ``stride t + low`` everywhere.

Legend: ``C`` channels, ``H x W`` pixels.
"""

from __future__ import annotations

from typing import NamedTuple

from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import op_row

_IMAGE_RANK = 4
_ELEMENTWISE = ("Add", "Sub", "Scale", "Constant", "Input")
_MOST_PHASES = 64
_LARGEST_SHARE = 0.75
"""Of an image that a window may cover: above, most of it hangs over the edges."""


class Window(NamedTuple):
    """Pixels ``stride y + low <= . < stride y + high``, for each of the two axes."""

    stride: tuple[int, int]
    low: tuple[int, int]
    high: tuple[int, int]

    @property
    def extents(self) -> tuple[int, int]:
        return self.high[0] - self.low[0], self.high[1] - self.low[1]

    def hull(self, other: Window) -> Window | None:
        """The smallest window that holds both; None where they move differently."""
        if self.stride != other.stride:
            return None
        low = min(self.low[0], other.low[0]), min(self.low[1], other.low[1])
        high = max(self.high[0], other.high[0]), max(self.high[1], other.high[1])
        return Window(self.stride, low, high)


def is_image(node: Node) -> bool:
    """Whether ``node`` is ``[1, C, H, W]``."""
    return len(node.shape) == _IMAGE_RANK and node.shape[0] == 1


class Geometry(NamedTuple):
    """How a kernel walks over an image."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]


def geometry_of(node: Node) -> Geometry | None:
    """That of a convolution or average of images; None for other operators."""
    if not is_image(node):
        return None
    if node.op == "Conv":
        kernel, pads, gaps = (
            node.params["weight"].shape[2:],
            node.attrs["pads"],
            node.attrs["dilations"],
        )
    elif node.op == "AveragePool":
        kernel, pads, gaps = node.attrs["kernel"], (0, 0), (1, 1)
    else:
        return None
    down, right = node.attrs["strides"]
    return Geometry((kernel[0], kernel[1]), (down, right), (pads[0], pads[1]), (gaps[0], gaps[1]))


def turned_geometry_of(node: Node) -> Geometry | None:
    """That of the kernel of a transposed convolution of images, which walks over the result."""
    if node.op != "ConvTranspose" or not is_image(node) or node.attrs["group"] != 1:
        return None
    (tall, broad), (down, right) = node.params["weight"].shape[2:], node.attrs["strides"]
    (top, left), (below, beside) = node.attrs["pads"], node.attrs["dilations"]
    return Geometry((tall, broad), (down, right), (top, left), (below, beside))


def seen_by(node: Node, window: Window) -> Window | None:
    """What ``window`` of a convolution, an average or of padding reads; None for other operators,
    and where that depends on more than the phase."""
    turned = turned_geometry_of(node)
    if turned is not None:
        return _seen_by_turned(turned, window)
    if node.op == "Pad":
        top, left = node.attrs["pads"][0][2:]
        low, high = ((y - top, x - left) for y, x in (window.low, window.high))
        return Window(window.stride, low, high)
    geometry = geometry_of(node)
    if geometry is None:
        return None
    axes = []
    for kernel, step, pad, gap, stride, low, high in zip(*geometry, *window, strict=True):
        first = low * step - pad
        axes.append(
            (stride * step, first, first + (high - low - 1) * step + gap * (kernel - 1) + 1)
        )
    (s, a, b), (t, c, d) = axes
    return Window((s, t), (a, c), (b, d))


def _seen_by_turned(geometry: Geometry, window: Window) -> Window | None:
    """Rows ``r`` with ``low <= s r - p + d i < high`` for some ``i`` of the kernel."""
    axes = []
    for kernel, step, pad, gap, stride, low, high in zip(*geometry, *window, strict=True):
        if stride % step:
            return None
        first = -((gap * (kernel - 1) - low - pad) // step)
        axes.append((stride // step, first, max((high - 1 + pad) // step, first) + 1))
    (s, a, b), (t, c, d) = axes
    return Window((s, t), (a, c), (b, d))


def period_of(graph: Graph, source: str) -> tuple[int, int]:
    """How many phases the elements of ``source`` have along each axis; one where windows would be
    of no use."""
    wanted, period = {source}, (1, 1)
    for node in reversed(list(graph.nodes.values())):
        if node.name in wanted:
            wanted.update(node.inputs)
            turned = turned_geometry_of(node)
            if turned is not None:
                period = period[0] * turned.strides[0], period[1] * turned.strides[1]
    is_useful = is_image(graph.nodes[source]) and period[0] * period[1] <= _MOST_PHASES
    return period if is_useful else (1, 1)


def windows_behind(
    graph: Graph,
    source: str,
    period: tuple[int, int] = (1, 1),
    phase: tuple[int, int] = (0, 0),
) -> dict[str, Window | None]:
    """The window of every node that ``source`` depends on, itself included, for the elements at
    ``period t + phase``."""
    end = phase[0] + 1, phase[1] + 1
    one = Window(period, phase, end) if is_image(graph.nodes[source]) else None
    wanted: dict[str, Window | None] = {source: one}
    for node in reversed(list(graph.nodes.values())):
        if node.name not in wanted:
            continue
        window = wanted[node.name] = _kept(graph, node, wanted[node.name])
        for name in node.inputs:
            seen = None if window is None else seen_by(node, window) or window
            if name in wanted:
                before = wanted[name]
                seen = None if seen is None or before is None else before.hull(seen)
            wanted[name] = seen
    return wanted


def moves_channels(node: Node, operand: Node) -> bool:
    """Whether ``node`` is whole channels of ``operand``, or has those of several images in turn."""
    if not (is_image(node) and is_image(operand)):
        return False
    if node.op == "Concat":
        return bool(node.attrs["axis"] == 1)
    whole = [(0, extent, 1) for extent in operand.shape]
    parts = [tuple(part) for part in node.attrs["slices"]] if node.op == "Slice" else []
    return parts[2:] == whole[2:] and parts[:1] == whole[:1] and parts[1][2] == 1


def _pads_pixels(node: Node) -> bool:
    before, after = node.attrs["pads"]
    return not any((*before[:2], *after[:2])) and min(*before, *after) >= 0


def _kept(graph: Graph, node: Node, window: Window | None) -> Window | None:
    """``window`` where it is a small part of the image, and its operands' parts are windows too."""
    if window is None or not is_image(node):
        return None
    row = op_row(node.op)
    is_elementwise = (node.op in _ELEMENTWISE or (not row.is_affine and row.is_local)) and all(
        graph.nodes[name].shape == node.shape for name in node.inputs
    )
    is_moved = is_elementwise or moves_channels(node, graph.nodes[node.inputs[0]])
    if node.op == "Pad" and not _pads_pixels(node):
        return None
    if seen_by(node, window) is None and not is_moved:
        return None
    (tall, broad), (height, width) = window.extents, node.shape[2:]
    return window if tall * broad <= _LARGEST_SHARE * height * width else None
