"""A network as a function of images: pixels in [0, 1] to logits, normalisation inside,
differentiable.

Attacks and accuracies speak of pixels; network files rarely do. They want ``(x - mean) / std`` per
channel, channels first or last, or one flat vector. ``ImageLayout`` knows that map and its inverse,
``GraphClassifier`` composes it with the network. The normalisation is computed in float32 in this
order, subtraction then division, as training frameworks and the published properties have it; in
other dtypes it is that of the decimals given.

Legend: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns, ``K`` classes, ``n`` flat network
inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from bitcrown.errors import ModelError, SettingsError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.graph import Graph
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.pullback import Pullback

_ORDERS = ("auto", "chw", "hwc")
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class ImageLayout:
    """How images ``shape = (C, H, W)`` become network inputs: ``(x - mean) / std``, then ``order``
    and flat.

    ``mean`` and ``std`` are exact, one entry a channel. ``order`` is ``chw`` or ``hwc``.
    """

    shape: Shape
    mean: tuple[Fraction, ...]
    std: tuple[Fraction, ...]
    order: str = "chw"

    def __post_init__(self) -> None:
        if len(self.mean) != self.shape[0] or len(self.std) != self.shape[0]:
            raise SettingsError(
                f"mean and std need one number for each of {self.shape[0]} channels, but have "
                f"{len(self.mean)} and "
                f"{len(self.std)}"
            )
        if any(value <= 0 for value in self.std):
            raise SettingsError("every std must be positive")

    @classmethod
    def of(
        cls,
        shape: Shape,
        mean: Sequence[Fraction] | None = None,
        std: Sequence[Fraction] | None = None,
        order: str = "chw",
    ) -> ImageLayout:
        """One number serves all channels; without any, pixels stay as they are."""
        means, stds = tuple(mean or (Fraction(0),)), tuple(std or (Fraction(1),))
        return cls(
            shape,
            means * shape[0] if len(means) == 1 else means,
            stds * shape[0] if len(stds) == 1 else stds,
            order,
        )

    def channel_values(self, values: Sequence[Fraction], like: Tensor) -> Tensor:
        """``[C, 1, 1]`` in the dtype of ``like``."""
        numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
        return numbers.to(like.device, like.dtype)[:, None, None]

    def to_inputs(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` pixels to ``[B, n]`` network inputs."""
        inputs = (images - self.channel_values(self.mean, images)) / self.channel_values(
            self.std, images
        )
        return self.flat(inputs)

    def flat(self, values: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, n]`` in the network's order, values as they are."""
        return (values.permute(0, 2, 3, 1) if self.order == "hwc" else values).flatten(1)

    def to_images(self, inputs: Tensor) -> Tensor:
        """``[B, n]`` network inputs back to ``[B, C, H, W]`` pixels (not clipped)."""
        channels, rows, columns = self.shape
        if self.order == "hwc":
            values = inputs.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
        else:
            values = inputs.reshape(-1, *self.shape)
        return values * self.channel_values(self.std, values) + self.channel_values(
            self.mean, values
        )


class GraphClassifier(torch.nn.Module):
    """``[B, C, H, W]`` in [0, 1] to logits ``[B, K]``; the network's weights are constants,
    gradients go to pixels."""

    def __init__(self, network: Network, layout: ImageLayout) -> None:
        super().__init__()
        self.network, self.layout = network, layout
        self._run = Pullback.of(network) or network

    @property
    def classes(self) -> int:
        return self.network.graph.n_outputs

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(device=self.network.device, dtype=self.network.dtype)
        return self._run(self.layout.to_inputs(images))


def layout_of(
    graph: Graph,
    shape: Shape,
    mean: Sequence[Fraction] | None = None,
    std: Sequence[Fraction] | None = None,
    order: str = "auto",
) -> ImageLayout:
    """The layout that takes images of ``shape`` to the inputs of ``graph``.

    ``auto`` reads the order off the network's input shape and takes a flat input as channels first.
    Raises ``ModelError`` where images of this shape do not fit, or fit in two orders.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError("a classifier has one input and one output; this network has others")
    if order not in _ORDERS:
        raise SettingsError(
            f"the order of image axes is one of {', '.join(_ORDERS)}, not {order!r}"
        )
    return layout_for(graph.nodes[graph.inputs[0]].shape, shape, mean, std, order)


def layout_for(
    found: Sequence[int],
    shape: Shape,
    mean: Sequence[Fraction] | None = None,
    std: Sequence[Fraction] | None = None,
    order: str = "auto",
) -> ImageLayout:
    """The same for an input of shape ``found``."""
    channels, rows, columns = shape
    if channels * rows * columns != math.prod(found):
        raise ModelError(
            f"images of {channels}x{rows}x{columns} do not fit a network input of shape "
            f"{list(found)}; give images of that size"
        )
    if order == "auto":
        extents = [extent for extent in found if extent != 1]
        fits = [
            name
            for name, axes in (
                ("chw", (channels, rows, columns)),
                ("hwc", (rows, columns, channels)),
            )
            if [extent for extent in axes if extent != 1] == extents
        ]
        if len(fits) == 2 and channels > 1:
            raise ModelError(f"a network input of shape {list(found)} may be chw or hwc: say which")
        if not fits and len(extents) != 1:
            raise ModelError(
                f"images of {channels}x{rows}x{columns} do not fit a network input of shape "
                f"{list(found)}"
            )
        order = fits[0] if fits else "chw"
    return ImageLayout.of(shape, mean, std, order)


def read_classifier(
    file: NetworkFile,
    shape: Shape,
    mean: Sequence[Fraction] | None = None,
    std: Sequence[Fraction] | None = None,
    order: str = "auto",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> GraphClassifier:
    """An ONNX file as a classifier, checked against onnxruntime. Raises ``ModelError``."""
    graph = read_graph(file)
    crosscheck(graph, file, 0)
    return GraphClassifier(Network(graph, dtype, device), layout_of(graph, shape, mean, std, order))
