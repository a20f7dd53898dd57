"""The robustness property of one image, as the verifier understands it.

Asked is whether some image ``x'`` with ``|x' - x| <= eps`` and ``0 <= x' <= 1`` (pixel by pixel)
makes another logit reach the label's. What the network sees is ``(x' - mean) / std``, and that is
read in two ways: in real arithmetic with the decimals given, and as training code and the published
properties compute it, every step in float32. The box of a proof is the hull of both, then rounded
outward, so that a proof covers every pixel image, however it is normalised.

Normalisation is monotonic, so a box has two ends per pixel, and they depend only on the channel and
the pixel's value: exact ends are computed once for each value that occurs (256 per channel for
8-bit images) and looked up.

Legend: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns, ``K`` classes, ``n`` flat network
inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from bitcrown.errors import SettingsError
from bitcrown.model.classifier import ImageLayout
from bitcrown.search.objective import Objective
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Problem
from bitcrown.spec.robustness import NETWORK, other_label_query, wrong_labels
from bitcrown.spec.rounding import box_lower, box_upper

_Ends = tuple[Fraction, Fraction]
UNIT = (Fraction(0), Fraction(1))
"""Least and greatest value of a pixel."""


class ImageBoxes:
    """Boxes and problems of images under one ``layout`` and radius ``eps``; ``dtype`` is the
    network's float type. Pixels stay within ``limits``; None is no limit."""

    def __init__(
        self,
        layout: ImageLayout,
        eps: Fraction,
        dtype: str = "float32",
        limits: _Ends | None = UNIT,
    ) -> None:
        if eps < 0:
            raise SettingsError(f"eps must not be negative, but is {eps}")
        self.layout, self.eps, self.dtype, self.limits = layout, eps, dtype, limits
        self._ends: dict[tuple[int, float, Fraction], _Ends] = {}
        self._floats: dict[tuple[int, float], tuple[float, float]] = {}

    def ends(self, channel: int, value: float, eps: Fraction | None = None) -> _Ends:
        """Exact least and greatest network input of a pixel whose clean value is the float32
        ``value``; ``eps``: another radius for this pixel."""
        radius = self.eps if eps is None else eps
        key = channel, value, radius
        if key not in self._ends:
            mean, std = self.layout.mean[channel], self.layout.std[channel]
            low, high = Fraction(value) - radius, Fraction(value) + radius
            if self.limits is not None:
                low, high = (min(max(end, self.limits[0]), self.limits[1]) for end in (low, high))
            single = self._float32_ends(channel, value, low, high, radius)
            lower, upper = (low - mean) / std, (high - mean) / std
            self._ends[key] = min(lower, Fraction(single[0])), max(upper, Fraction(single[1]))
        return self._ends[key]

    def _float32_ends(
        self, channel: int, value: float, low: Fraction, high: Fraction, radius: Fraction
    ) -> tuple[float, float]:
        """Ends of the inputs computed in float32, of every float32 pixel in ``[low, high]`` and of
        ``value -+ eps``.

        Rounding is monotonic, so the ends of the pixels give them; ``value -+ eps`` may round to
        just outside.
        """
        mean, std, eps = (
            np.float32(float(number))
            for number in (self.layout.mean[channel], self.layout.std[channel], radius)
        )
        pixel = np.float32(value)
        least, most = pixel - eps, pixel + eps
        if self.limits is not None:
            least, most = (
                min(max(end, np.float32(self.limits[0])), np.float32(self.limits[1]))
                for end in (least, most)
            )
        least = min(least, np.float32(box_lower(low)))
        most = max(most, np.float32(box_upper(high)))
        return float((least - mean) / std), float((most - mean) / std)

    def outward(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``[B, n]`` (float64, rounded outward as the search rounds those of a property) of
        ``[B, C, H, W]``."""
        lower, upper = np.empty(images.shape, np.float64), np.empty(images.shape, np.float64)
        for channel in range(images.shape[1]):
            values, places = np.unique(images[:, channel], return_inverse=True)
            pairs = np.array([self._outward_ends(channel, float(value)) for value in values])
            lower[:, channel], upper[:, channel] = (
                pairs[:, k][places.reshape(-1)].reshape(images.shape[0], *images.shape[2:])
                for k in (0, 1)
            )
        return self._flat(lower), self._flat(upper)

    def _outward_ends(self, channel: int, value: float) -> tuple[float, float]:
        key = channel, value
        if key not in self._floats:
            lower, upper = self.ends(channel, value)
            self._floats[key] = box_lower(lower, self.dtype), box_upper(upper, self.dtype)
        return self._floats[key]

    def _flat(self, values: np.ndarray) -> np.ndarray:
        result: np.ndarray = self.layout.flat(torch.from_numpy(values)).numpy()
        return result

    def exact(
        self, image: np.ndarray, radii: Sequence[Fraction] | None = None
    ) -> tuple[list[Fraction], list[Fraction]]:
        """Exact ends of the inputs of one image ``[C, H, W]``, flat in the network's order;
        ``radii``: one for each pixel, flat in the order of the image."""
        channels = np.broadcast_to(np.arange(len(image))[:, None, None], image.shape)
        places = np.arange(image.size).reshape(image.shape)
        order = [
            self._flat(part[None].astype(np.float64))[0].tolist()
            for part in (channels, image, places)
        ]
        pairs = [
            self.ends(int(channel), value, None if radii is None else radii[int(place)])
            for channel, value, place in zip(*order, strict=True)
        ]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    def problem(self, image: np.ndarray, label: int, classes: int, network: Path) -> Problem:
        """Decide this: is there a point of the box where another logit is at least the label's?"""
        query = other_label_query(*self.exact(image), label, classes)
        return problem_from_query(query, {NETWORK: network})

    def objective(
        self, lower: np.ndarray, upper: np.ndarray, label: int, classes: int
    ) -> Objective:
        """The same question as rows, one case for each other label, over the outward box
        ``[n]``."""
        wrong = wrong_labels(label, classes)
        rows = np.zeros((len(wrong), 1, classes))
        for row, constraint in zip(rows, wrong, strict=True):
            for (output,), factor in constraint.terms:
                row[0, output] = float(factor)
        box = np.zeros(len(wrong), dtype=np.int64)
        return Objective(rows, None, np.zeros((len(wrong), 1)), lower[None], upper[None], box)
