"""Why a floating-point bound may be called a proof.

Let ``u`` be the unit roundoff. A sum of ``k`` products computed in any order, with or without fused operations, differs
from the exact one by at most ``gamma_k * sum |a_i||b_i|`` with ``gamma_k = k u / (1 - k u)`` (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). Two consequences are all that bitcrown uses:

*Forward (intervals).* An affine node computes ``W z + b`` with error at most ``gamma_k (|W||z| + |b|)``, elementwise.
Every interval is widened by that.

*Backward (CROWN).* At each moment of the backward pass the bounded quantity is at least
``sum_p <a_p, z_p> + constant - error`` over the nodes ``p`` not yet passed. Passing an affine node replaces
``<a, W z + b>`` by ``<fl(W^T a), z> + fl(<a, b>)``; the difference is at most ``gamma_k <|a|, |W||z| + |b|>``. Passing
a nonlinear node replaces ``a`` by ``a * slope`` and adds ``a * intercept``; the difference is at most
``gamma_k <|a|, |slope||z| + |intercept|>``. So with ``magnitude_p >= |W||z_p| + |b|`` known once for a box (and valid
for every smaller box), the whole rounding error of a bound is at most ``gamma sum_p <|a_p|, magnitude_p>``, one inner
product per node. ``gamma`` below takes one ``k`` that exceeds every sum in the network: its largest tensor, its longest
adjoint, its number of consumers.

The slopes and intercepts themselves are sound as rounded: ``bounds.relaxations`` chooses intercepts for the slope that
was really stored. Winograd and FFT convolutions do not satisfy the first inequality, and reduced-precision tensor
cores do not have the stated ``u``; proofs are therefore made in float64, for which neither exists, and float32 serves
only to *find* slopes and multipliers, every value of which gives a valid bound.

A bound that is NaN or infinite is no bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitcrown.model.execute import Network


def gamma(network: Network) -> float:
    """``gamma_k`` for the largest sum that any pass over ``network`` can form."""
    longest = 64
    for node in network.graph.nodes.values():
        weights = sum(value.numel() for value in network.params[node.name].values())
        longest = max(longest, node.size, weights)
    unit = torch.finfo(network.dtype).eps / 2
    k = 4 * longest
    return k * unit / (1 - k * unit) if k * unit < 0.5 else math.inf


def finite_or_none(lower: Tensor) -> Tensor:
    """Replace NaN and infinities of a lower bound by ``-inf``: no bound."""
    return torch.where(torch.isfinite(lower), lower, torch.full_like(lower, -math.inf))
