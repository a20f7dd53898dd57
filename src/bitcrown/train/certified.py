"""Certified losses: upper bounds of the cross entropy over a box of images, differentiable in the
weights.

With margins ``m_j = z_j - z_y`` of the logits the cross entropy is ``log sum_j exp(m_j)``,
increasing in every margin. *Interval* (IBP, Gowal et al. 2018): put upper bounds of the margins in;
the last linear layer is merged with the difference of two logits, so its interval is that of the
margin itself. *CROWN-IBP* (Zhang et al. 2020): intervals for the layers inside, one backward pass
of the CROWN engine for the last bound. With K classes that is K rows an image. *Loss fusion* (Xu et
al. 2020) needs one: ``exp`` is convex, so on ``l_j <= m_j <= u_j`` it is below its chord
``s_j m_j + t_j``; ``sum_j s_j m_j`` is one linear function of the logits, bounded from above as one
row, and the logarithm of a bound is a bound of the logarithm.

The engine is the verifier's own (``bounds.interval``, ``bounds.crown``) with rounding left out: a
guide that trains, not a proof. Legend: ``B`` images, ``K`` classes, ``S`` rows, ``n`` flat inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds.crown import Backward, minimum, output_seeds, relaxations_of
from bitcrown.bounds.interval import Bounds, interval_bounds
from bitcrown.model.execute import Network

FUSED_FROM = 20
"""Classes from which one fused row is taken instead of one a margin, unless the settings say
otherwise."""


class InputBox(NamedTuple):
    """``lower``, ``upper``: ``[B, n]``, in the units of the network's input."""

    lower: Tensor
    upper: Tensor


def margin_rows(network: Network, labels: Tensor) -> Tensor:
    """``[B, K, K]``: row j is ``z_y - z_j``; the row of the label itself is zero."""
    every = torch.eye(network.graph.n_outputs, dtype=network.dtype, device=labels.device)
    return every[labels].unsqueeze(1) - every


def interval_margins(network: Network, bounds: Bounds, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Interval ``[B, K]`` of the margins, from the intervals before the last layer (affine)."""
    # z = W x + b with rows W_j, so m_j = (W_j - W_y) x + b_j - b_y: one interval of one affine
    # function, which is narrower than the difference of the intervals of z_j and z_y.
    last = network.graph.nodes[network.graph.outputs[0]]
    (source,) = last.inputs
    low, up = bounds[source]
    units = torch.eye(last.size, dtype=low.dtype, device=low.device)
    (rows,) = network.adjoint(last, units.reshape(-1, *last.shape))
    rows, offset = rows.flatten(1), network.offset(last).flatten()
    a = rows - rows[labels].unsqueeze(1)
    centre = (low + up).flatten(1).unsqueeze(2) * 0.5
    radius = (up - low).flatten(1).unsqueeze(2) * 0.5
    # |a (x - centre)| <= |a| radius.
    middle = torch.bmm(a, centre).squeeze(2) + (offset - offset[labels].unsqueeze(1))
    reach = torch.bmm(a.abs(), radius).squeeze(2)
    return middle - reach, middle + reach


def crown_bound(network: Network, bounds: Bounds, box: InputBox, rows: Tensor) -> Tensor:
    """CROWN lower bounds ``[B, S]`` of ``rows [B, S, K]`` over given intervals (CROWN-IBP)."""
    backward = Backward(network, relaxations_of(network, bounds))
    return minimum(backward.run(output_seeds(network, rows)), box.lower, box.upper)


def chord(low: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the line through ``exp`` at both ends: above it in between.

    Narrow intervals use the series of ``(exp(w) - 1) / w``: the quotient would have gradients of
    the size ``1 / w``.
    """
    # slope = (e^up - e^low) / width = e^low (e^width - 1) / width.
    width = up - low
    is_wide = width > 0.05
    safe = torch.where(is_wide, width, torch.ones_like(width))
    series = 1 + width / 2 * (1 + width / 3 * (1 + width / 4 * (1 + width / 5)))
    slope = torch.where(is_wide, (up.exp() - low.exp()) / safe, low.exp() * series)
    # Both ends give the same intercept but for rounding; the larger one is above both.
    return slope, torch.maximum(low.exp() - slope * low, up.exp() - slope * up)


def fused_bound(
    network: Network, bounds: Bounds, box: InputBox, labels: Tensor, margins: tuple[Tensor, Tensor]
) -> Tensor:
    """Upper bounds ``[B]`` of the cross entropy by one CROWN row an image."""
    low, up = margins
    # log sum_j exp(m_j) = top + log sum_j exp(m_j - top): no exponential exceeds 1.
    top = up.detach().amax(dim=1, keepdim=True)
    # exp(m_j - top) <= slope_j (m_j - top) + intercept_j on [low_j, up_j]; the label has m_y = 0
    # exactly and is added below as exp(-top).
    slope, intercept = chord(low - top, up - top)
    is_other = torch.ones_like(slope).scatter(1, labels.unsqueeze(1), 0.0)
    slope, intercept = slope * is_other, intercept * is_other
    # sum_j slope_j m_j = sum_j slope_j z_j - (sum_j slope_j) z_y. CROWN bounds from below, so the
    # row is its negative, and -least bounds it from above.
    row = (-slope).scatter_add(1, labels.unsqueeze(1), slope.sum(1, keepdim=True)).unsqueeze(1)
    least = crown_bound(network, bounds, box, row).squeeze(1)
    # sum_j exp(m_j - top) <= total. (Rounding may make a tiny total negative, hence the floor.)
    total = (intercept - slope * top).sum(1) + torch.exp(-top.squeeze(1)) - least
    return total.clamp(min=torch.finfo(total.dtype).tiny).log() + top.squeeze(1)


def certified_loss(
    network: Network, box: InputBox, labels: Tensor, beta: float | Tensor, is_fused: bool
) -> Tensor:
    """Upper bounds ``[B]`` of the cross entropy: ``beta`` CROWN-IBP, the rest interval.

    Each mixture of valid bounds is valid. Without fusion the margins are mixed, with it the two
    bounds of the loss.
    """
    bounds = interval_bounds(network, box.lower, box.upper, gamma=0.0)
    margins = interval_margins(network, bounds, labels)
    upper = margins[1]
    has_crown = isinstance(beta, Tensor) or beta > 0
    if is_fused:
        loss = torch.logsumexp(upper, dim=1)
        if has_crown:
            loss = beta * fused_bound(network, bounds, box, labels, margins) + (1 - beta) * loss
        return loss
    if has_crown:
        rows = margin_rows(network, labels)
        upper = (1 - beta) * upper - beta * crown_bound(network, bounds, box, rows)
    return torch.logsumexp(upper, dim=1)


def certified_margins(
    network: Network, box: InputBox, labels: Tensor, entries: int = 1 << 26
) -> Tensor:
    """``[B]``: a lower bound of the least margin ``z_y - z_j`` over ``j != y``; a guide, no proof.

    Each margin has the better of its two bounds; CROWN bounds only those whose interval does not
    decide. ``entries`` limits the size of one tensor.
    """
    bounds = interval_bounds(network, box.lower, box.upper, gamma=0.0)
    # -upper(m_j) <= z_y - z_j; the label's own row must not be the least.
    found = -interval_margins(network, bounds, labels)[1].scatter(
        1, labels.unsqueeze(1), -torch.inf
    )
    # CROWN can only help where the interval does not decide; an image with fewer such rows than
    # another gets a few that are decided, which does no harm.
    rows = margin_rows(network, labels)
    count = int((found <= 0).sum(1).amax())
    hardest = found.argsort(dim=1)[:, :count]
    widest = max(node.size for node in network.graph.nodes.values())
    for part in torch.split(hardest, max(1, entries // (widest * len(labels))), dim=1):
        chosen = rows.gather(1, part.unsqueeze(2).expand(-1, -1, rows.shape[2]))
        better = torch.maximum(crown_bound(network, bounds, box, chosen), found.gather(1, part))
        found = found.scatter(1, part, better)
    return found.amin(dim=1)
