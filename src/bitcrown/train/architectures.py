"""Residual networks as lists of layers: one description from which torch modules, ONNX files and
graphs are made.

A network is a stem (3x3 convolution, batch norm, ReLU), stages of residual blocks and two linear
layers. A block is

    y = BN(conv3x3(ReLU(BN(conv3x3(x))))) + shortcut(x),

where the shortcut is the identity, or a strided 1x1 convolution with batch norm where the shape
changes. No ReLU follows the addition: the next block's convolution reads the sum itself.
Convolutions have no bias, batch norm has one. The five published benchmark networks (CIFAR-100
small, medium, large, super; TinyImageNet medium) are rows of ``ARCHITECTURES``, and so is a small
one that a CPU can train. Normalisation of images is outside the network.

Legend: ``C`` channels, ``H``/``W`` height and width; shapes here are without the batch axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bitcrown.errors import SettingsError


@dataclass(frozen=True)
class Layer:
    """One tensor: its ``op``, and the ``shape`` of the result.

    ``op`` is Input, Conv, BatchNorm, Relu, Add, Flatten or Linear.
    ``kernel``, ``stride`` and ``padding`` belong to Conv and are the same on both axes.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: int = 0
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class Stage:
    """``blocks`` residual blocks of ``channels``; the first has ``stride``, the others 1."""

    channels: int
    blocks: int
    stride: int


@dataclass(frozen=True)
class Architecture:
    """``input_shape`` is ``(C, H, W)``; ``hidden`` neurons between the linear layers."""

    name: str
    input_shape: tuple[int, int, int]
    stem_channels: int
    stem_stride: int
    stem_padding: int
    stages: tuple[Stage, ...]
    hidden: int
    classes: int


LAST_OF_BLOCK = "_second_bn"
"""End of the name of each block's last batch norm."""
_IMAGE = (3, 32, 32)
_LARGE = (Stage(64, 2, 1), Stage(128, 2, 2), Stage(128, 2, 2), Stage(256, 2, 2))
_SUPER = (Stage(128, 3, 2), Stage(256, 3, 2), Stage(256, 3, 2))
ARCHITECTURES = {
    name: Architecture(name, shape, stem, stride, padding, stages, hidden, classes)
    for name, shape, stem, stride, padding, stages, hidden, classes in (
        ("resnet_mini", _IMAGE, 16, 2, 0, (Stage(32, 1, 2), Stage(64, 1, 2)), 100, 100),
        ("resnet_small", _IMAGE, 64, 2, 0, (Stage(128, 2, 2), Stage(128, 2, 2)), 100, 100),
        ("resnet_medium", _IMAGE, 64, 2, 0, (Stage(128, 4, 2), Stage(128, 4, 2)), 100, 100),
        ("resnet_large", _IMAGE, 64, 1, 1, _LARGE, 100, 100),
        ("resnet_super", _IMAGE, 128, 2, 0, _SUPER, 100, 100),
        ("tiny_resnet_medium", (3, 56, 56), 64, 2, 0, (Stage(128, 4, 2),) * 2, 200, 200),
    )
}


def architecture(
    name: str, classes: int | None = None, input_shape: tuple[int, int, int] | None = None
) -> Architecture:
    """The named one, with other classes or images if asked. Raises ``SettingsError``."""
    if name not in ARCHITECTURES:
        raise SettingsError(
            f"there is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}"
        )
    found = ARCHITECTURES[name]
    found = replace(
        found, classes=classes or found.classes, input_shape=input_shape or found.input_shape
    )
    if found.classes < 2 or min(min(layer.shape) for layer in layers(found)) < 1:
        raise SettingsError(
            f"{name} needs larger images or more classes than {found.input_shape}, {found.classes}"
        )
    return found


def layers(of: Architecture) -> tuple[Layer, ...]:
    """All layers in topological order; the first is the input ``x``, the last gives the logits."""
    writer = _Writer(of.input_shape)
    last = writer.convolved("stem", "x", of.stem_channels, 3, of.stem_stride, of.stem_padding)
    last = writer.add("stem_relu", "Relu", last)
    for s, stage in enumerate(of.stages, 1):
        for b in range(1, stage.blocks + 1):
            stride = stage.stride if b == 1 else 1
            last = writer.block(f"stage{s}_block{b}", last, stage.channels, stride)
    last = writer.add("flat", "Flatten", last, shape=(math.prod(writer.layers[last].shape),))
    last = writer.add("hidden", "Linear", last, shape=(of.hidden,))
    last = writer.add("hidden_relu", "Relu", last)
    writer.add("logits", "Linear", last, shape=(of.classes,))
    return tuple(writer.layers.values())


class _Writer:
    """Appends layers, by name; each method returns the name of the last one."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.layers = {"x": Layer("x", "Input", (), input_shape)}

    def add(self, name: str, op: str, *inputs: str, shape: tuple[int, ...] | None = None) -> str:
        """A layer whose result has the shape of its first input unless ``shape`` says otherwise."""
        self.layers[name] = Layer(name, op, inputs, shape or self.layers[inputs[0]].shape)
        return name

    def convolved(
        self, name: str, source: str, channels: int, kernel: int, stride: int, padding: int
    ) -> str:
        """Convolution and batch norm."""
        room = (extent + 2 * padding - kernel for extent in self.layers[source].shape[1:])
        shape = (channels, *(extent // stride + 1 for extent in room))
        conv = Layer(f"{name}_conv", "Conv", (source,), shape, kernel, stride, padding)
        self.layers[conv.name] = conv
        return self.add(f"{name}_bn", "BatchNorm", conv.name)

    def block(self, name: str, source: str, channels: int, stride: int) -> str:
        inner = self.convolved(f"{name}_first", source, channels, 3, stride, 1)
        inner = self.add(f"{name}_relu", "Relu", inner)
        inner = self.convolved(f"{name}_second", inner, channels, 3, 1, 1)
        if stride != 1 or self.layers[source].shape[0] != channels:
            source = self.convolved(f"{name}_shortcut", source, channels, 1, stride, 0)
        return self.add(f"{name}_sum", "Add", inner, source)
