"""What one run of an attack leaves behind: the images it broke, and what its gradients were like.

The second half is for the warnings (``hygiene``): an attack that stands still because its gradients
are zero or NaN looks, from outside, exactly like a robust network.

Legend: ``B`` images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Trace(NamedTuple):
    """``found [B]`` bool, ``x [B, C, H, W]`` (clean where none was found); the rest ``[B]`` bool.

    ``broken_gradient``: NaN or infinite somewhere on the way; ``zero_gradient``: all zero at the
    start; ``flat``: a whole run in which the loss never rose above where it began.
    """

    found: Tensor
    x: Tensor
    broken_gradient: Tensor
    zero_gradient: Tensor
    flat: Tensor

    @classmethod
    def empty(cls, clean: Tensor) -> Trace:
        """Nothing found, nothing noticed."""
        no = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        return cls(no, clean.clone(), no.clone(), no.clone(), no.clone())

    def record(self, place: Tensor, x: Tensor) -> None:
        """``x`` breaks the images with numbers ``place``."""
        self.found[place] = True
        self.x[place] = x

    def note_gradient(self, place: Tensor, slope: Tensor, is_first: bool) -> None:
        """Look at the gradients ``slope`` of images ``place`` for zero, NaN and infinity."""
        largest = slope.abs().amax(dim=(1, 2, 3))
        self.broken_gradient[place] |= ~torch.isfinite(largest)
        if is_first:
            self.zero_gradient[place] |= largest == 0

    def merge(self, place: Tensor, other: Trace) -> None:
        """Take over a further run on the images ``place`` (flat: only if all runs were)."""
        self.record(place[other.found], other.x[other.found])
        self.broken_gradient[place] |= other.broken_gradient
        self.zero_gradient[place] |= other.zero_gradient
        self.flat[place] &= other.flat
