"""The classifier under attack: any function from images in [0, 1] to logits, evaluated so that
batches do not matter.

Two things would let the outcome for one image depend on its batch. Losses averaged over the batch:
here every loss is per image, and the gradient that of the sum. And floating point: kernels choose
their order of summation by the shape they are given, so the same image may get other last bits in a
batch of 50 than in one of 200. Therefore every call of the network has the same shape: ``rows``
images, the last group filled up with copies. What an attack does to an image is then a function of
the image, the seed, the network and ``rows`` alone.

A network whose logits really depend on the batch (normalisation by batch moments) is not helped by
that: it gets its images in the groups as they come (``rows=None``), and the record says so.

An image counts as misclassified only if another logit is greater by more than ``_THIN`` of the
largest logit: what rounding could turn round in another batch is no success. It is also confirmed
alone, in a batch of one.

Legend: ``B`` images, ``K`` classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitcrown.attacks.images.losses import lead

Classifier = Callable[[Tensor], Tensor]
"""``[B, C, H, W]`` in [0, 1] to logits ``[B, K]``; normalisation is inside."""
ImageLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits ``[B, K]`` and classes ``[B]`` (labels, or targets) to one number per image ``[B]``."""

CPU_ROWS = 96
"""Measured for a small residual network: calls of 48, 64 and 128 cost 1.25, 1.1 and 1.05 times as
much an image."""
_DEVICE_ROWS = 512
"""Where doubling begins on other devices, which small calls do not fill."""
_MOST_ROWS = 1 << 14
_CHEAPER = 0.9
"""A call of twice the size is better if a row then costs no more than this share."""
_THIN = 1e-5


@dataclass(frozen=True)
class Victim:
    """``rows``: images in every call (None: as they come). ``repeats``: gradients averaged."""

    model: Classifier
    rows: int | None = CPU_ROWS
    repeats: int = 1

    def logits(self, x: Tensor) -> Tensor:
        """``[B, K]``, without a gradient."""
        with torch.no_grad():
            return _joined([self.model(group)[:kept] for kept, group in self._groups(x)])

    def gradient(
        self, x: Tensor, loss: ImageLoss, classes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[B, K]``, loss ``[B]`` and its gradient ``[B, C, H, W]``, in one forward pass.

        NaN and infinity in the gradient are passed on: who uses it decides what to do and what to
        report.
        """
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for kept, group, group_classes in self._groups(x, classes):
            found = [self._group_gradient(group, loss, group_classes) for _ in range(self.repeats)]
            logits, value, slope = found[0]
            if self.repeats > 1:
                value, slope = (
                    torch.stack([part[k] for part in found]).mean(dim=0) for k in (1, 2)
                )
            parts.append((logits[:kept], value[:kept], slope[:kept]))
        logits, value, slope = (_joined(column) for column in zip(*parts, strict=True))
        return logits, value, slope

    def _group_gradient(
        self, x: Tensor, loss: ImageLoss, classes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.model(x)
            value = loss(logits, classes)
            (slope,) = torch.autograd.grad(value.sum(), x)
        return logits.detach(), value.detach(), slope

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, K]`` and the gradients of all ``[B, K, n]``: ``K`` backward passes."""
        parts = []
        for kept, group in self._groups(x):
            group = group.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = self.model(group)
                sums = logits.sum(dim=0)
                slopes = [
                    torch.autograd.grad(total, group, retain_graph=True)[0].flatten(1)
                    for total in sums
                ]
            parts.append((logits.detach()[:kept], torch.stack(slopes, dim=1)[:kept]))
        logits, slope = (_joined(column) for column in zip(*parts, strict=True))
        return logits, slope

    def _groups(self, *tensors: Tensor) -> Iterator[Any]:
        """For each call: how many rows are images asked about, and the rows of each tensor."""
        count = len(tensors[0])
        size = self.rows or max(1, count)
        for first in range(0, count, size):
            if first + size <= count or self.rows is None:
                yield (
                    min(size, count - first),
                    *(tensor[first : first + size] for tensor in tensors),
                )
            else:
                index = torch.arange(first, first + size, device=tensors[0].device).clamp(
                    max=count - 1
                )
                yield count - first, *(tensor.index_select(0, index) for tensor in tensors)

    def breaks(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """``[B]``: clearly misclassified, and again when alone (``rows=None``: not asked again)."""
        found = is_misclassified(logits, labels)
        if self.rows is None:
            return found
        for place in found.nonzero().flatten().tolist():
            with torch.no_grad():
                alone = self.model(x[place : place + 1])
            found[place] = is_misclassified(alone, labels[place : place + 1])[0]
        return found


def _joined(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def rows_for(count: int, most: int) -> int:
    """Size of a group for ``count`` images: ``most`` (see ``widest_call``), or less where that
    leaves little to fill up."""
    groups = max(1, -(-count // most))
    return max(1, -(-count // groups))


def widest_call(
    model: Classifier,
    images: Tensor,
    seconds: Callable[[Classifier, Tensor], float] | None = None,
) -> int:
    """How many rows a call of ``model`` should have at most, for images like ``images``.

    On the CPU a constant. On other devices it is measured, by doubling until a row gets hardly
    cheaper or memory ends; so there another machine may choose another size, with other last bits.
    ``seconds``: of one call with ``rows [B, C, H, W]`` and its gradient (default: the clock).
    """
    if images.device.type == "cpu" or not len(images):
        return CPU_ROWS
    measured, rows, before = seconds or _call_seconds, _DEVICE_ROWS, torch.inf
    while rows <= _MOST_ROWS:
        try:
            each = measured(model, images[:1].expand(rows, -1, -1, -1).contiguous()) / rows
        except torch.OutOfMemoryError:
            # Attacks keep some copies beside the call: half of what just fitted, if anything did.
            return max(1, rows // 4)
        if each > _CHEAPER * before:
            break
        rows, before = 2 * rows, each
    return rows // 2


def _call_seconds(model: Classifier, rows: Tensor) -> float:
    """With the gradient, where there is one; the best of three."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        x = rows.detach().requires_grad_(True)
        with torch.enable_grad():
            found = model(x).sum()
        if found.requires_grad:
            (found,) = torch.autograd.grad(found, x)
        float(found.sum())  # a number: the device has finished
        times.append(time.perf_counter() - started)
    return min(times)


def is_misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """``[B]``: another class leads by more than rounding can; never where a logit is NaN."""
    is_clear: Tensor = lead(logits, labels) > _THIN * logits.abs().amax(dim=1)
    return is_clear & torch.isfinite(logits).all(dim=1)
