"""A matrix product of two bounded operands, passed as one.

``z = sum_d x_d y_d`` along the last axis, of operands that are repeated along one axis each, is
what a product of two matrices becomes: attention has two in every layer, with as many products as
rows x columns x inner extent. A row's coefficients are those of ``z``, the same for all ``d``.
Where the two planes around each product are parallel, with slopes ``s_d`` and ``t_d``, so are those
around ``z``: offsets and losses (``measures``) are added up over ``d`` once, and the coefficients
of both operands are batches of matrix products, summed over the axis along which an operand is
repeated. Nothing is as large as all products.

Each coefficient is what a pass over the single nodes computes: one product, and a sum of as many
terms as the operand is repeated. So the errors are theirs: that of the product, and
``|s_d|`` times that of each repetition. Legend: ``S`` rows, ``R`` the other axes, ``E`` the
repeated one, ``D`` the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitcrown.bounds.centred.measures import Measures
from bitcrown.bounds.centred.windows import Window, is_image
from bitcrown.model.graph import Graph, Node

_UP = 1 + 2.0**-18
"""More than the roundings of a few sums in double precision and of one to single."""


class SumOfProducts:
    """``node``, a sum over the last axis of ``product``, whose operands ``repeats`` repeat
    ``bases``."""

    def __init__(
        self,
        node: Node,
        product: Node,
        repeats: Sequence[Node],
        bases: Sequence[Node],
        of: Mapping[str, Measures],
    ) -> None:
        self.node, self.product, self.bases = node, product, bases
        measures = of[product.name]
        first, _, second, _, above, gap = (_plain(product, line) for line in measures.lines)
        loss = _plain(product, measures.loss).double()
        for slope, repeat in zip((first, second), repeats, strict=True):
            loss = loss + slope.double().abs() * _plain(product, of[repeat.name].loss).double()
        self.loss = (loss.sum(-1) * _UP).float()
        self.above, self.gap = (line.double().sum(-1).float() for line in (above, gap))
        self.axes = [_repeated_axis(base, product) for base in bases]
        self.slopes = [
            line.movedim(axis, -2).flatten(0, -3).contiguous()
            for line, axis in zip((first, second), self.axes, strict=True)
        ]

    def run(self, a: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Coefficients of both bases, and what constant and error grow by, ``[S]``, double; for
        coefficients ``a`` of ``node``."""
        if is_image(self.node):
            a = a.permute(2, 3, 0, 1)
        a = a.reshape(len(a), *self.product.shape[:-1])
        every = tuple(range(1, a.dim()))
        gained = (a * self.above).addcmul_(a.clamp(min=0), self.gap)
        lost = (a.abs() * self.loss).sum(every, dtype=torch.float64) * _UP
        parts = []
        for base, axis, slope in zip(self.bases, self.axes, self.slopes, strict=True):
            rows = a.movedim((axis + 1, 0), (-1, -2)).reshape(len(slope), len(a), -1)
            part = torch.bmm(rows, slope).transpose(0, 1).reshape(len(a), *base.shape)
            parts.append(part[:, 0].permute(2, 3, 0, 1).contiguous() if is_image(base) else part)
        return parts, gained.sum(every, dtype=torch.float64), lost


def sums_of(
    graph: Graph,
    windows: Mapping[str, Window | None],
    of: Mapping[str, Measures],
    source: Node,
) -> dict[str, SumOfProducts]:
    """Those that rows from ``source`` pass, by the name of the sum."""
    readers, found = graph.consumers(), {}
    for name in windows:
        node = graph.nodes[name]
        if node.op != "ReduceSum" or not node.inputs:
            continue
        product = graph.nodes[node.inputs[0]]
        if product.op != "Mul" or tuple(node.attrs["axes"]) != (len(product.shape) - 1,):
            continue
        repeats = [graph.nodes[name] for name in product.inputs]
        if any(repeat.op != "Expand" for repeat in repeats):
            continue
        bases = [graph.nodes[repeat.inputs[0]] for repeat in repeats]
        inner = [product, *repeats]
        is_alone = all(len(readers[each.name]) == 1 for each in inner)
        is_whole = all(windows[each.name] is None for each in (node, *inner, *bases))
        is_one_axis = all(_repeated_axis(base, product) >= 0 for base in bases)
        is_inside = source.name in {each.name for each in inner}
        if not (is_alone and is_whole and is_one_axis) or is_inside:
            continue
        if product.name in of and of[product.name].is_parallel:
            found[name] = SumOfProducts(node, product, repeats, bases, of)
    return found


def _repeated_axis(base: Node, product: Node) -> int:
    """The only axis, not the last, along which ``base`` is repeated; -1 where that is not so."""
    if len(base.shape) != len(product.shape):
        return -1
    pairs = zip(base.shape, product.shape, strict=True)
    axes = [axis for axis, (own, full) in enumerate(pairs) if own != full]
    return axes[0] if len(axes) == 1 and axes[0] < len(base.shape) - 1 else -1


def _plain(node: Node, value: Tensor) -> Tensor:
    """``value`` of ``node`` as ``[*]``, also that of an image."""
    return value.permute(2, 0, 1).unsqueeze(0) if is_image(node) else value
