"""Losses of logits that attacks on classifiers make large, one number an image.

Legend: ``B`` images, ``K`` classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy_or_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy ``[B]``; where it rounds to 0, and its gradient with it, because the logits
    of a network are large and the label far ahead, ``lead``."""
    entropy = cross_entropy(logits, labels)
    return torch.where(entropy > 0, entropy, lead(logits, labels))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``log sum_k exp z_k - z_y``, ``[B]``, for ``logits [B, K]``; an attack makes it large."""
    return torch.logsumexp(logits, dim=1) - _entry(logits, labels)


def lead(logits: Tensor, labels: Tensor) -> Tensor:
    """``max_{k != y} z_k - z_y`` per image ``[B]``: positive where misclassified."""
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.amax(dim=1) - _entry(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """``(max_{k != y} z_k - z_y) / (z_(1) - z_(3))``, ``[B]`` (Croce & Hein 2020, eq. 6).

    ``z_(1) >= z_(2) >= ...`` are the sorted logits. The quotient does not change when the network's
    logits are shifted or scaled, which the cross entropy's gradient does not survive. Two classes
    have no third logit: then ``lead``.
    """
    if logits.shape[1] < 3:
        return lead(logits, labels)
    top = logits.topk(3, dim=1).values
    return lead(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)``, ``[B]`` (Croce & Hein 2020, eq. 7).

    With three classes ``z_(3)`` alone is taken off, with two there is no denominator.
    """
    rise = _entry(logits, targets) - _entry(logits, labels)
    if logits.shape[1] < 3:
        return rise
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    return rise / (top[:, 0] - top[:, 2:].mean(dim=1) + 1e-12)


def _entry(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)
