"""Which rectangle of every earlier layer an element of a convolutional layer depends on, for all
its positions at once.

The element at row ``y`` depends on rows ``stride y + low`` to ``stride y + high`` (exclusive) of an
earlier node, padding included (Araujo et al., "Computing Receptive Fields of Convolutional Neural
Networks", 2019), and likewise for columns. So rows of a backward pass that begin at different
positions of one layer have coefficients of one shape, each with a place of its own, and go through
the same products. Where such a window would be about as large as the image, or where an operator
looks at more than windows, coefficients are those of the whole node (``None``).

Legend: ``C`` channels, ``H x W`` pixels.
"""

from __future__ import annotations

from typing import NamedTuple

from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import op_row

_IMAGE_RANK = 4
_ELEMENTWISE = ("Add", "Sub", "Scale", "Constant", "Input")
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


def seen_by(node: Node, window: Window) -> Window | None:
    """What ``window`` of a convolution or average ``node`` reads; None for other operators."""
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


def windows_behind(graph: Graph, source: str) -> dict[str, Window | None]:
    """The window of every node that ``source`` depends on, itself included."""
    one = Window((1, 1), (0, 0), (1, 1)) if is_image(graph.nodes[source]) else None
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


def _kept(graph: Graph, node: Node, window: Window | None) -> Window | None:
    """``window`` where it is a small part of the image, and its operands' parts are windows too."""
    if window is None or not is_image(node):
        return None
    row = op_row(node.op)
    is_elementwise = (node.op in _ELEMENTWISE or (not row.is_affine and row.is_local)) and all(
        graph.nodes[name].shape == node.shape for name in node.inputs
    )
    if seen_by(node, window) is None and not is_elementwise:
        return None
    (tall, broad), (height, width) = window.extents, node.shape[2:]
    return window if tall * broad <= _LARGEST_SHARE * height * width else None
