"""Forward bounds that remember where uncertainty came from: zonotopes (DeepZ; Singh et al., NeurIPS
2018).

A value is ``centre + sum_k generator_k * e_k + error * e'`` with every symbol ``e_k`` in [-1, 1]
shared by all elements and ``e'`` independent for each element. Affine nodes map centre and
generators exactly: what cancels between two paths cancels here, which intervals lose. A nonlinear
node is enclosed by two parallel lines; half their distance becomes a new symbol for each element
where it is not zero. Symbols are numbered over the whole network: two branches that meet again may
share only what they inherited.

What this is for: in deep networks over small boxes intervals call nearly every neuron undecided,
and bounding those by backward passes costs thousands of rows; after a zonotope only those are left
that nearly are. Where symbols would exceed the memory, new distances go into ``error``: sound, only
looser.

Rounding: an affine map of K generators and a centre has the error of K + 1 evaluations of the node,
each at most gamma times its magnitude, and of as many underflows (``rounding``); it is added to
``error``. Legend: ``K`` symbols, ``*`` the node's shape; one box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.relaxations.registry import Relaxation, gathered_terms
from bitcrown.bounds.rounding import raised, underflow
from bitcrown.model.execute import Network
from bitcrown.model.graph import Node

FEW_SYMBOLS = 64
"""Inputs that vary, up to which zonotopes come before backward passes with no more symbols than the
widest node has room for in those: a column costs what a row does."""
_CHUNK = 64
"""Symbols that are mapped, or whose absolute values are added, at a time."""


@dataclass(frozen=True)
class Zonotope:
    """``centre``, ``error`` (>= 0) are ``[1, *]``, ``generators [K, *]``."""

    centre: Tensor
    generators: Tensor
    error: Tensor

    def radius(self) -> Tensor:
        """``[1, *]``, added up a chunk of symbols at a time: no second copy of the generators."""
        total = self.error
        for part in torch.split(self.generators, _CHUNK):
            total = total + part.abs().sum(dim=0, keepdim=True)
        return total


class Propagation:
    """Zonotopes of one network, node by node. ``memory``: bytes that the generators of one node may
    take.

    At any time there are at most four tensors of that size: the sources, one that waits for its
    branch, the result. A node may make new symbols as long as they fit the widest node *after* it,
    for all of which it must be carried.
    """

    def __init__(self, network: Network, gamma: float, memory: int) -> None:
        self.network, self.gamma, self.symbols = network, gamma, 0
        item = torch.finfo(network.dtype).bits // 8
        self.most_symbols: dict[str, int] = {}
        widest = 1
        for node in reversed(list(network.graph.nodes.values())):
            widest = max(widest, node.size)
            self.most_symbols[node.name] = memory // (item * widest)

    def box(self, node: Node, lower: Tensor, upper: Tensor) -> Zonotope:
        """An input ``[1, *]``: one symbol for each element that varies."""
        centre, radius = (lower + upper) / 2, (upper - lower) / 2
        error = (centre.abs() + radius) * self.gamma + (lower < upper) * underflow(
            self.gamma, centre.dtype
        )
        return self._with_symbols(node, Zonotope(centre, centre[:0], error), radius)

    def _with_symbols(
        self, node: Node, zonotope: Zonotope, radius: Tensor, slope: Tensor | None = None
    ) -> Zonotope:
        """Plus ``radius [1, *]`` times a symbol of its own for each element; without room, plus an
        error.

        The inherited generators are multiplied by ``slope`` where given.
        """
        inherited = zonotope.generators
        fresh = (radius.flatten() > 0).nonzero().flatten()
        if self.symbols + len(fresh) > self.most_symbols[node.name]:
            generators = inherited if slope is None else slope * inherited
            return Zonotope(zonotope.centre, generators, zonotope.error + radius)
        generators = radius.new_zeros(self.symbols + len(fresh), *radius.shape[1:])
        if slope is None:
            generators[: len(inherited)] = inherited
        else:
            torch.mul(slope, inherited, out=generators[: len(inherited)])
        rows = torch.arange(self.symbols, len(generators), device=radius.device)
        generators.view(len(generators), radius.numel())[rows, fresh] = radius.flatten()[fresh]
        self.symbols += len(fresh)
        return Zonotope(zonotope.centre, generators, zonotope.error)

    def affine(self, node: Node, sources: Sequence[Zonotope]) -> Zonotope:
        network = self.network
        absolute = network.rows[node.name].absolute
        assert absolute is not None
        params = network.params[node.name]
        centre = network.forward_node(node, [z.centre for z in sources]).expand(1, *node.shape)
        if not sources:
            return Zonotope(centre, centre[:0], torch.zeros_like(centre))
        generators = self._mapped(node, [z.generators for z in sources])
        count = len(generators)
        sizes = [z.centre.abs() + z.radius() for z in sources]
        size = absolute(node, params, [raised(network, node, size) for size in sizes])
        error = absolute(node, params, [z.error for z in sources])
        lost = (count + 1) * underflow(self.gamma, size.dtype) * torch.sign(size)
        error = error + self.gamma * (size + (count + 1) * network.offset_size(node)) + lost
        return Zonotope(centre, generators, error.expand(1, *node.shape))

    def _mapped(self, node: Node, sources: Sequence[Tensor]) -> Tensor:
        """Generators ``[K, *]`` of an affine node, a chunk at a time.

        A convolution in float64 unfolds its whole batch into columns, nine times its input for a
        3x3 kernel.
        """
        network, count = self.network, max(len(source) for source in sources)
        if count == 0:
            return sources[0].new_zeros(0, *node.shape)
        result = sources[0].new_empty(count, *node.shape)
        for start in range(0, count, _CHUNK):
            stop = min(start + _CHUNK, count)
            value = network.forward_node(node, [_slice(source, start, stop) for source in sources])
            is_linear = network.has_zero_offset(node)
            result[start:stop] = value if is_linear else value - network.offset(node)
        return result

    def nonlinear(
        self, node: Node, relaxation: Relaxation, source: Zonotope, low: Tensor, up: Tensor
    ) -> Zonotope:
        """A node of one operand in ``[low, up]``, between two lines of equal slope."""
        below, above = (
            slopes[0].squeeze(1) for slopes in (relaxation.lower_slopes, relaxation.upper_slopes)
        )
        floor, ceiling = (
            relaxation.lower_intercept.squeeze(1),
            relaxation.upper_intercept.squeeze(1),
        )
        if node.op == "Relu":  # max(x, 0) >= s x for every s in [0, 1]
            slope, least, most = above, torch.zeros_like(above), ceiling
        else:
            # With both lines tilted to one slope, least <= f(x) - slope x <= most on [low, up]:
            # linear in x, so attained at an end.
            slope = (below + above) / 2
            fall, rise = below - slope, above - slope
            least = floor + gathered_terms(torch.minimum(fall * low, fall * up), node)
            most = ceiling + gathered_terms(torch.maximum(rise * low, rise * up), node)
        size = slope.abs() * (source.centre.abs() + source.radius())
        steepest = slope.abs() + torch.maximum(below.abs(), above.abs())
        size = size + torch.maximum(low.abs(), up.abs()) * steepest
        size = gathered_terms(size, node) + floor.abs() + ceiling.abs()
        # f = slope x + (most + least) / 2, up to half their distance: a symbol of its own.
        distance = ((most - least) / 2).clamp(min=0)
        centre = gathered_terms(slope * source.centre, node) + (most + least) / 2
        error = gathered_terms(slope.abs() * source.error, node) + self.gamma * size
        error = error + (len(source.generators) + 1) * underflow(
            self.gamma, size.dtype
        ) * torch.sign(size)
        if centre.shape == source.centre.shape:
            found = Zonotope(centre, source.generators, error)
            return self._with_symbols(node, found, distance, slope)
        found = Zonotope(centre, gathered_terms(slope * source.generators, node), error)
        return self._with_symbols(node, found, distance)

    def interval(self, zonotope: Zonotope) -> tuple[Tensor, Tensor]:
        radius = zonotope.radius()
        radius = radius + self.gamma * (
            radius + zonotope.centre.abs()
        )  # sums only: nothing underflows
        return zonotope.centre - radius, zonotope.centre + radius

    def unknown(self, low: Tensor, up: Tensor) -> Zonotope:
        """A value known by its interval alone."""
        centre = (low + up) / 2
        error = (up - low) / 2 * (1 + self.gamma) + self.gamma * centre.abs()
        return Zonotope(
            centre, centre[:0], error + (low < up) * underflow(self.gamma, centre.dtype)
        )


class Forward:
    """Zonotopes along one walk through the graph; a node's is dropped after its last reader."""

    def __init__(self, network: Network, gamma: float, memory: int) -> None:
        self.propagation = Propagation(network, gamma, memory)
        self.rows = network.rows
        self.waiting = {name: len(readers) for name, readers in network.graph.consumers().items()}
        self.zonotopes: dict[str, Zonotope] = {}

    def begin(self, node: Node, lower: Tensor, upper: Tensor) -> None:
        self.zonotopes[node.name] = self.propagation.box(node, lower, upper)

    def step(
        self,
        node: Node,
        interval: tuple[Tensor, Tensor],
        bounds: Bounds,
        relaxations: Mapping[str, Relaxation],
        radius: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The interval of ``node``'s zonotope; ``interval`` is what is known of it, ``bounds`` of
        its operands.

        ``radius`` is how far the runtime rounds its value, where it does.
        """
        sources = [self.zonotopes[name] for name in node.inputs]
        if self.rows[node.name].is_affine:
            found = self.propagation.affine(node, sources)
        elif len(sources) == 1:
            found = self.propagation.nonlinear(
                node, relaxations[node.name], sources[0], *bounds[node.inputs[0]]
            )
        else:
            found = self.propagation.unknown(*interval)
        if radius is not None:
            found = replace(found, error=found.error + radius)
        self.zonotopes[node.name] = found
        for name in node.inputs:
            self.waiting[name] -= 1
            if not self.waiting[name]:
                self.zonotopes.pop(name, None)
        return self.propagation.interval(found)


def _slice(generators: Tensor, start: int, stop: int) -> Tensor:
    """Symbols ``start`` to ``stop``; later ones, which an earlier value does not depend on, are
    zeros."""
    part = generators[start:stop]
    missing = stop - start - len(part)
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
