"""What a pass in single precision needs of every node, measured from the middle of the box.

Let ``c_p`` be the value of node ``p`` at the middle of the box, as computed, and
``r_p >= |z_p - c_p|`` on the box. The pass (``passes``) keeps, for every input of the box,

    quantity >= sum over nodes p not yet passed of <a_p, z_p - c_p>  + constant - error.

An affine node has ``z - c = W (y - c_y) + (W c_y + b - c)``, where the last bracket is the rounding
error of one evaluation in double precision. So its offset never enters, and an error ``d`` in a
coefficient costs ``|d| r``, not ``|d| |z|``: over a small box that is smaller by orders of
magnitude, and what single precision loses is about a thousandth of a bound's width. With ``k``
terms in the longest sum of the adjoint and weights rounded once more,

    error += <|a|, loss>,   loss = gamma_(k+..) |W| r + gamma (|W||c_y| + |b|) + radius,

with ``gamma_k`` of single precision in the first place and of double in the second; ``radius`` is
how far the runtime's value may be from the function (``rounding``). A nonlinear node between two
lines has ``f(y) - c >= s (y - c_y) + o`` with ``o = s c_y + t - c``, computed here in double
precision; slope and offset are rounded to single, each product once:
``loss = gamma_8 (|s| r + |o|) + ...``.

This needs sums of products, in whatever order. The products are matrix products of ``passes``
itself, never a convolution of a library, which might be Winograd's; tensor cores round their
operands, which ``is_exact_type`` looks for.

Tensors of images lie as ``[H, W, C]``. Legend: ``C`` channels, ``H x W`` pixels, ``*`` a node's
shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.centred.windows import is_image, turned_geometry_of
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.relaxations.registry import Relaxation, gathered_terms
from bitcrown.bounds.shares import adds_up
from bitcrown.model.execute import Network
from bitcrown.model.graph import Node

_UNIT = torch.finfo(torch.float32).eps / 2
_TINY = torch.finfo(torch.float32).tiny
_UP = 1 + 2.0**-20
"""Covers a handful of roundings of numbers that are not negative, in either precision."""
_LEAST = 2.0**-100
"""Far more than all underflows in double precision, and than weights that single precision lacks.
"""
_MOVES = ("Add", "Sub", "Scale", "Reshape", "Slice", "Transpose", "Concat", "Pad", "ReduceSum")
"""Operators whose adjoint adds up nothing."""
_COPIES = ("Reshape", "Transpose", "Slice", "Concat")
"""Operators that put every element somewhere else, at most once."""
_LINE = 16
"""Roundings of ``a upper + max(a, 0) (lower - upper)`` and of its numbers, relative to the larger
of the two lines: two of the product with ``upper``, eight of the other, one of the sum, and
room."""
_PART = 128
"""Channels that are added up in single precision."""


def share(terms: int) -> float:
    """``gamma_terms`` of single precision; infinite where it says nothing."""
    return terms * _UNIT / (1 - terms * _UNIT) if terms * _UNIT < 0.25 else float("inf")


def is_exact_type(device: torch.device) -> bool:
    """Whether products in single precision keep their 24 bits: settings and environment may allow a
    library fewer. A matrix times the identity is itself, bit by bit, or they do."""
    if torch.get_float32_matmul_precision() != "highest":
        return False
    size = 256
    values = torch.arange(size * size, device=device).reshape(size, size)
    matrix = 1 + ((values * 2654435761) % (1 << 23)).double() / (1 << 23)
    single = matrix.float()
    product = single @ torch.eye(size, device=device)
    return bool((product == single).all()) and bool((single.double() == matrix).all())


@dataclass(frozen=True)
class Measures:
    """Of one node, in single precision, ``[H, W, C]`` or ``[*]``: ``loss``; of a nonlinear node
    ``lines``: the upper slope and what the lower one has more, operand by operand, then the same of
    the offsets; of a ReLU ``band``: slope, offset of the middle and half the width of the band
    ``s y`` to ``s y + t``. ``centre [1, *]`` is double.

    A node ``is_exact`` if nothing is computed on the way over it: coefficients are copied, and
    added to no others. ``excess`` bounds, for lines that add up to 1, how far the centres are from
    that; zero in all places but the first of a line. Lines that are ``is_parallel`` have the same
    slopes below and above."""

    centre: Tensor
    loss: Tensor
    lines: tuple[Tensor, ...] = ()
    band: tuple[Tensor, ...] = ()
    is_exact: bool = False
    excess: Tensor | None = None
    is_parallel: bool = False


class Reference:
    """Measures of the nodes of ``network`` (double precision) on one box, made as bounds become
    known."""

    def __init__(self, network: Network, x_lower: Tensor, x_upper: Tensor) -> None:
        self.network, self.gamma = network, rounding.gamma(network)
        single = {
            name: {key: value.float() for key, value in params.items()}
            for name, params in network.params.items()
        }
        self.single = network.with_params(single)
        self.single.dtype = torch.float32
        self.of: dict[str, Measures] = {}
        self.lost = 0.0
        self.terms: dict[str, int] = {}
        self.readers = {name: len(found) for name, found in network.graph.consumers().items()}
        lows, ups = network.split_inputs(x_lower), network.split_inputs(x_upper)
        for name, low in lows.items():
            centre = low + (ups[name] - low) / 2
            self.of[name] = Measures(centre, torch.zeros_like(centre).float())

    @classmethod
    def of_box(cls, network: Network, x_lower: Tensor, x_upper: Tensor) -> Reference | None:
        """None where single precision is no proof here."""
        is_one = x_lower.shape[0] == 1 and network.dtype == torch.float64
        nodes = network.graph.nodes.values()
        # no adjoint is a convolution of a library, and there are measures of all
        is_safe = all(
            node.op != "MatMul"
            and (node.op != "Conv" or is_image(node))
            and (node.op != "ConvTranspose" or turned_geometry_of(node) is not None)
            for node in nodes
        )
        if not (is_one and is_safe and is_exact_type(network.device)):
            return None
        return cls(network, x_lower, x_upper)

    def extend(
        self,
        source: str,
        bounds: Bounds,
        relaxations: Mapping[str, Relaxation],
        radii: Mapping[str, Tensor],
    ) -> bool:
        """Measures of all nodes up to ``source``; whether all of them are finite."""
        for node in self.network.graph.nodes.values():
            if node.name not in self.of:
                if self.network.rows[node.name].is_affine:
                    found = self._affine(node, bounds, radii.get(node.name))
                else:
                    found = self._nonlinear(node, bounds, relaxations, radii.get(node.name))
                self.of[node.name] = found
                sizes = sum(float(self.radius(name, bounds).sum()) for name in node.inputs)
                self.lost += 8 * self._terms(node) * _TINY * (sizes + node.size + 1)
            if node.name == source:
                break
        used = [part for each in self.of.values() for part in (each.loss, *each.lines, *each.band)]
        return self.lost < 1.0 and all(bool(torch.isfinite(part).all()) for part in used)

    def radius(self, name: str, bounds: Bounds) -> Tensor:
        """``[1, *]``, double: how far the node's value may be from its centre."""
        low, up = bounds[name]
        centre = self.of[name].centre
        return torch.maximum(up - centre, centre - low) * _UP

    def image(self, node: Node, value: Tensor) -> Tensor:
        """``value [1, *]`` rounded up to single precision, images as ``[H, W, C]``."""
        flat = (value.expand(1, *node.shape)[0] * _UP).float()
        return flat[0].permute(1, 2, 0).contiguous() if is_image(node) else flat

    def _terms(self, node: Node) -> int:
        """What a coefficient of an operand is the sum of, at most, and what it is added to."""
        params = self.network.params[node.name]
        if node.op == "Conv":
            outputs, _, *kernel = params["weight"].shape
            terms = outputs // node.attrs["group"] + kernel[0] * kernel[1]
        elif node.op == "ConvTranspose":
            _, outputs, *kernel = params["weight"].shape
            terms = outputs + kernel[0] * kernel[1]
        elif node.op == "Linear":
            terms = len(params["weight"])
        elif node.op == "AveragePool":
            terms = math.prod(node.attrs["kernel"])
        elif not self.network.rows[node.name].is_affine:
            terms = _LINE
        elif node.op in _MOVES:
            terms = 2
        elif node.op == "Expand":
            terms = node.size // self.network.graph.nodes[node.inputs[0]].size
        else:
            terms = max([node.size] + [value.numel() for value in params.values()])
        return int(terms) + 8 + sum(self.readers[name] for name in node.inputs)

    def _affine(self, node: Node, bounds: Bounds, runtime: Tensor | None) -> Measures:
        network, params = self.network, self.network.params[node.name]
        absolute = network.rows[node.name].absolute
        assert absolute is not None
        centres = [self.of[name].centre for name in node.inputs]
        centre = network.forward_node(node, centres).expand(1, *node.shape)
        is_read_alone = all(self.readers[name] == 1 for name in node.inputs)
        if runtime is None and node.op in _COPIES and is_read_alone:
            return Measures(centre, torch.zeros_like(centre).float(), is_exact=True)
        loss = torch.full_like(centre, _LEAST)
        if node.inputs:
            radii = [self.radius(name, bounds) for name in node.inputs]
            cast = _LEAST * sum(radius.sum() for radius in radii)
            loss = loss + share(self._terms(node)) * (absolute(node, params, radii) + cast)
            size = absolute(node, params, [value.abs() for value in centres])
            loss = loss + self.gamma * (size + network.offset_size(node))
        if runtime is not None:
            loss = loss + runtime
        return Measures(centre, self.image(node, loss))

    def _nonlinear(
        self,
        node: Node,
        bounds: Bounds,
        relaxations: Mapping[str, Relaxation],
        runtime: Tensor | None,
    ) -> Measures:
        centres = [self.of[name].centre for name in node.inputs]
        centre = self.network.forward_node(node, centres).expand(1, *node.shape)
        given = relaxations[node.name]
        low, up = (
            given.lower_intercept.squeeze(1) - centre,
            given.upper_intercept.squeeze(1) - centre,
        )
        size = torch.maximum(given.lower_intercept.abs(), given.upper_intercept.abs()).squeeze(1)
        size = size + centre.abs()
        loss = torch.full_like(centre, _LEAST)
        lines = []
        pairs = zip(node.inputs, given.lower_slopes, given.upper_slopes, strict=True)
        for name, below, above in pairs:
            at = self.of[name].centre
            low = low + gathered_terms(below.squeeze(1) * at, node)
            up = up + gathered_terms(above.squeeze(1) * at, node)
            steepest = torch.maximum(below.abs(), above.abs()).squeeze(1)
            terms = at.shape[-1] if at.shape[1:] != node.shape else 1
            size = terms * (size + gathered_terms(steepest * at.abs(), node))
            # (a slope that single precision lacks is off by less than _LEAST)
            radius = self.radius(name, bounds)
            lost = share(self._terms(node)) * (steepest * radius + _LEAST * radius)
            loss = loss + gathered_terms(lost, node)
            lines += [above.squeeze(1), (below - above).squeeze(1)]
        lines += [up, low - up]
        band: tuple[Tensor, ...] = ()
        gap = given.upper_intercept.squeeze(1)
        if node.op == "Relu" and bool(((lines[0] >= 0) & (lines[0] <= 1) & (gap >= 0)).all()):
            # s y <= max(y, 0) <= s y + t for any s in [0, 1]
            middle, half = self._plain(node, up - gap / 2), self.image(node, gap / 2)
            band = (self._plain(node, lines[0]), middle, half)
            loss = loss + share(_LINE) * gap
        loss = loss + share(_LINE) * torch.maximum(low.abs(), up.abs()) + 2.0**-45 * size
        if runtime is not None:
            loss = loss + runtime
        plain = tuple(self._plain(node, line) for line in lines)
        excess = self._excess(node, centre, runtime) if adds_up(node) else None
        is_parallel = not any(bool(rise.any()) for rise in plain[1:-2:2])
        return Measures(
            centre, self.image(node, loss), plain, band, excess=excess, is_parallel=is_parallel
        )

    def _excess(self, node: Node, centre: Tensor, runtime: Tensor | None) -> Tensor:
        """How far the sum of the values may be from that of the centres (``bounds.shares``)."""
        total, terms = centre.sum(-1, keepdim=True), centre.shape[-1]
        found = (total - 1).abs() + 2 * (terms + 8) * torch.finfo(centre.dtype).eps
        if runtime is not None:
            found = found + runtime.expand_as(centre).sum(-1, keepdim=True) * (1 + 2.0**-20)
        return self.image(node, torch.nn.functional.pad(found, (0, terms - 1)))

    def _plain(self, node: Node, value: Tensor) -> Tensor:
        """``value [1, *]`` of ``node``, or slopes of the shape of what it reads."""
        is_line = bool(node.shape) and value.shape[-1] != node.shape[-1] == 1
        shape = (*node.shape[:-1], value.shape[-1]) if is_line else node.shape
        flat = value.expand(1, *shape)[0].float()
        return flat[0].permute(1, 2, 0).contiguous() if is_image(node) else flat
