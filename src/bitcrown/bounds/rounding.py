"""Why a floating-point bound may be called a proof.

Let ``u`` be the unit roundoff. A sum of ``k`` products computed in any order, with or without fused
operations, differs from the exact one by at most ``gamma_k * sum |a_i||b_i|`` with
``gamma_k = k u / (1 - k u)`` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
Two consequences are all that bitcrown uses:

*Forward (intervals).* An affine node computes ``W z + b`` with error at most
``gamma_k (|W||z| + |b|)``, elementwise. Every interval is widened by that.

*Backward (CROWN).* At each moment of the backward pass the bounded quantity is at least
``sum_p <a_p, z_p> + constant - error`` over the nodes ``p`` not yet passed. Passing an affine node
replaces ``<a, W z + b>`` by ``<fl(W^T a), z> + fl(<a, b>)``; the difference is at most
``gamma_k <|a|, |W||z| + |b|>``. Passing a nonlinear node replaces ``a`` by ``a * slope`` and adds
``a * intercept``; the difference is at most ``gamma_k <|a|, |slope||z| + |intercept|>``. So with
``magnitude_p >= |W||z_p| + |b|`` known once for a box (and valid for every smaller box), the whole
rounding error of a bound is at most ``gamma sum_p <|a_p|, magnitude_p>``, one inner product per
node. ``gamma`` below takes one ``k`` that exceeds every sum in the network: its largest tensor, its
longest adjoint, its number of consumers.

*Underflow.* A product may also lose up to the smallest normal number ``tiny``, whether its result
is rounded or flushed to zero; sums lose nothing. Forward, an element loses at most ``k tiny``; one
whose every product has a factor that is zero loses nothing, which ``raised`` lets one see.
Backward, a coefficient is off by ``k tiny``, so a pass over a node with operands ``z_i`` is off by
``k tiny (sum |z_i| + size)``. Every node is passed at most once, so a pass loses at most
``k tiny sum_p (sum magnitude_p + size_p)``: one number for a whole network and box,
``Scales.lost``.

The slopes and intercepts themselves are sound as rounded: ``bounds.relaxations`` chooses intercepts
for the slope that was really stored. Winograd and FFT convolutions do not satisfy the first
inequality, and reduced-precision tensor cores do not have the stated ``u``; proofs are therefore
made in float64, for which neither exists, or in matrix products of float32 that are checked for
their bits (``centred``). Elsewhere float32 serves only to *find* slopes and multipliers, every
value of which gives a valid bound.

*The runtime's rounding.* Where a node has a ``Rounding`` (sixteen-bit types, or semantics
``runtime``), the network that is bounded computes ``z = f(inputs) + e`` there with any
``|e| <= radius``: the interval is that much wider, and a backward pass over the node loses
``<|a|, radius>``. Radii hold on a box and on every smaller one (``Scales.radii``).

A bound that is NaN or infinite is no bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bitcrown.model.execute import Network
from bitcrown.model.graph import Node, Rounding

_SMALL = 2.0**20
"""Room for the divisors of averages, which are no parameters."""


def gamma(network: Network) -> float:
    """``gamma_k`` for the largest sum that any pass over ``network`` can form."""
    longest = max(64, network.longest_sum())
    unit = torch.finfo(network.dtype).eps / 2
    k = 4 * longest
    return k * unit / (1 - k * unit) if k * unit < 0.5 else math.inf


def underflow(gamma: float, dtype: torch.dtype) -> float:
    """``k tiny``: what underflow in all products of one element may lose, for the ``k`` of
    ``gamma``."""
    info = torch.finfo(dtype)
    return min(gamma / (info.eps / 2), 2.0**62) * info.tiny


def raised(network: Network, node: Node, size: Tensor) -> Tensor:
    """Magnitudes ``size`` of an operand of an affine node, those that are not zero raised by
    ``_SMALL / min |W|``.

    No product with a weight that is not zero then falls below the smallest normal number, so
    ``|W| size`` is zero only where every product that it bounds is.
    """
    return size + torch.sign(size) * (
        _SMALL * torch.finfo(size.dtype).tiny / network.smallest_weight(node)
    )


def radius(rounding: Rounding, largest: Tensor, scale: Tensor) -> Tensor:
    """A bound of ``|e|`` in ``z = v + e``; ``largest`` bounds ``|v|`` or ``|z|``, ``scale`` the
    absolute terms.

    The terms are off by ``gamma_k (scale + extra)``, the result by ``p = ulps u`` times its size.
    From ``|v| <= |z| + |e|`` follows ``|e| <= p |z| + p |e| + rest``, so
    ``(p largest + rest) / (1 - p)`` holds in either case. Where every term is zero the runtime's
    result is. Infinite where a partial sum or the result may leave the type's range.
    """
    # gamma of the sum, k u / (1 - k u), and half an ulp of the result
    share = rounding.terms * rounding.unit
    half_steps = rounding.ulps * rounding.unit
    if share >= 0.5 or half_steps >= 0.5:
        return torch.full_like(scale, math.inf)
    terms = scale + rounding.extra
    rest = terms * (share / (1 - share)) + (rounding.terms + 1) * rounding.least
    # p |z| + rest, over 1 - p; the factor covers the few roundings made here
    found = (half_steps * largest + rest) * ((1 + 2.0**-40) / (1 - half_steps))
    found = torch.where(terms == 0, 0.0, found) + rounding.absolute
    # the largest number that the runtime may meet on the way, be it a partial sum or the result
    reached = (
        largest + found
        if not rounding.terms
        else torch.maximum(largest, terms * (1 + share / (1 - share))) + found
    )
    return torch.where(reached <= rounding.largest, found, math.inf)


class Scales(dict[str, Tensor]):
    """Magnitudes ``[1, *shape]`` of the nodes of one network on one box; ``lost`` is what underflow
    costs any pass.

    ``radii`` bound how far the runtime's values of nodes with a ``Rounding`` are from the function
    of their operands; ``unbounded`` are the nodes with a magnitude that is no finite number.
    """

    def __init__(
        self,
        gamma: float,
        values: Mapping[str, Tensor] | None = None,
        radii: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.unbounded: set[str] = set()
        self.radii = dict(radii or {})
        self.lost: Tensor | float = 0.0
        for name, value in (values or {}).items():
            self[name] = value

    def __setitem__(self, name: str, scale: Tensor) -> None:
        super().__setitem__(name, scale)
        sizes = scale.detach()  # what is infinite gives no pass over it a bound
        is_finite = torch.isfinite(sizes)
        if not bool(is_finite.all()):
            self.unbounded.add(name)
        total = torch.where(is_finite, sizes, 0.0).sum() + sizes.numel()
        self.lost = self.lost + underflow(self.gamma, sizes.dtype) * total
