"""A network that is trained: torch modules for the weights, and views of them as
``execute.Network`` for the bounds.

The bound engine sees no batch norm. With statistics ``mu, v`` it is one affine map, so that
convolution and batch norm together are a convolution with

    weight' = weight * g,   bias' = shift - mu * g,   g = scale / sqrt(v + 1e-5).

``folded`` computes these differentiably. In training, ``mu`` and ``v`` are the moments of the
*clean* batch (as in CROWN-IBP, Zhang et al. 2020): one forward pass over the clean images measures
them and updates the running averages, and all three losses (natural, adversarial, certified) are
about the one function they give. The gradient goes through the moments too. Outside training the
running averages are used; then the view is the function that the ONNX file has.

Legend: ``B`` images, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import Params
from bitcrown.train.architectures import LAST_OF_BLOCK, Architecture, Layer, layers

Moments = Mapping[str, tuple[Tensor, Tensor]]
"""Batch norm layer to ``(mean, biased variance)``, each ``[C]``."""


class TrainableNetwork(nn.Module):
    """Weights of ``architecture``; ``forward`` runs normalised images with the running averages."""

    def __init__(
        self, architecture: Architecture, generator: torch.Generator | None = None
    ) -> None:
        """Blocks begin as their shortcuts (Goyal et al. 2017), so that intervals stay small."""
        super().__init__()
        self.architecture = architecture
        self.layers = layers(architecture)
        shapes = {layer.name: layer.shape for layer in self.layers}
        self.parts = nn.ModuleDict()
        for layer in self.layers:
            made = _module(layer, shapes)
            if made is not None:
                self.parts[layer.name] = made
        with torch.no_grad():
            for name, part in self.parts.items():
                _initialise(part, generator)
                if name.endswith(LAST_OF_BLOCK):
                    assert isinstance(part, nn.BatchNorm2d)
                    part.weight.zero_()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.template = Network(_template_graph(self.layers), torch.float32)

    def part(self, layer: Layer) -> nn.Module | None:
        """The module of a layer with weights, None for others."""
        return dict(self.parts.items()).get(layer.name)

    def size(self) -> int:
        """Entries of all weights as the ONNX file has them: batch norm counts four a channel."""
        return sum(
            value.numel()
            for key, value in self.state_dict().items()
            if not key.endswith("batches_tracked")
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images ``[B, C, H, W]`` to logits ``[B, K]``, with the running averages."""
        return self._run(x, self.running_moments())

    def clean_pass(self, x: Tensor, low: torch.dtype | None = None) -> tuple[Tensor, Moments]:
        """Logits ``[B, K]`` and the moments of this batch; updates the running averages."""
        moments: dict[str, tuple[Tensor, Tensor]] = {}
        return self._run(x.to(low), moments).to(x.dtype), moments

    def _run(self, x: Tensor, moments: Moments) -> Tensor:
        """Layer by layer, in the type of ``x``; missing moments are measured and entered."""
        values = {self.layers[0].name: x}
        for layer in self.layers[1:]:
            inputs = [values[name] for name in layer.inputs]
            part = self.part(layer)
            if isinstance(part, nn.BatchNorm2d):
                if layer.name not in moments:
                    assert isinstance(moments, dict)
                    moments[layer.name] = _measured(part, inputs[0])
                gain, shift = _gain_and_shift(part, *moments[layer.name])
                gain, shift = _per_channel(gain).to(x.dtype), _per_channel(shift).to(x.dtype)
                value = torch.addcmul(shift, inputs[0], gain)
            elif isinstance(part, nn.Conv2d):
                weight = part.weight.to(x.dtype)
                value = nn.functional.conv2d(inputs[0], weight, None, layer.stride, layer.padding)
            elif isinstance(part, nn.Linear):
                weight, bias = part.weight.to(x.dtype), part.bias.to(x.dtype)
                value = nn.functional.linear(inputs[0], weight, bias)
            elif layer.op == "Add":
                value = inputs[0] + inputs[1]
            else:
                value = inputs[0].relu() if layer.op == "Relu" else inputs[0].flatten(1)
            values[layer.name] = value
        return values[self.layers[-1].name]

    def running_moments(self) -> Moments:
        result = {}
        for name, part in self.parts.items():
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None and part.running_var is not None
                result[name] = part.running_mean, part.running_var
        return result

    def folded(self, moments: Moments | None = None) -> Network:
        """What the bound engine sees, differentiable in the weights (default: running averages)."""
        moments = self.running_moments() if moments is None else moments
        params: dict[str, Params] = {}
        for layer in self.layers:
            part = self.part(layer)
            if isinstance(part, nn.BatchNorm2d):
                convolution = self.parts[layer.inputs[0]]
                assert isinstance(convolution, nn.Conv2d)
                gain, shift = _gain_and_shift(part, *moments[layer.name])
                params[layer.name] = {
                    "weight": convolution.weight * gain.reshape(-1, 1, 1, 1),
                    "bias": shift,
                }
            elif isinstance(part, nn.Linear):
                params[layer.name] = {"weight": part.weight, "bias": part.bias}
        return self.template.with_params(params)


def detached(network: Network) -> Network:
    """The same network with weights that carry no gradient, for attacks."""
    return _with_each(network, Tensor.detach)


def with_dtype(network: Network, dtype: torch.dtype) -> Network:
    """The same network with its weights in ``dtype``; gradients go through the rounding."""
    return _with_each(network, lambda value: value.to(dtype))


def _with_each(network: Network, change: Callable[[Tensor], Tensor]) -> Network:
    return network.with_params(
        {
            name: {key: change(value) for key, value in params.items()}
            for name, params in network.params.items()
            if params
        }
    )


def _template_graph(of: tuple[Layer, ...]) -> Graph:
    """The engine's graph, all weights zero; a convolution is part of its batch norm's node."""
    by_name = {layer.name: layer for layer in of}
    nodes: dict[str, Node] = {}
    for layer in of:
        shape = (1, *layer.shape)
        if layer.op == "BatchNorm":
            conv = by_name[layer.inputs[0]]
            weight = (conv.shape[0], by_name[conv.inputs[0]].shape[0], conv.kernel, conv.kernel)
            strides, pads = [conv.stride] * 2, [conv.padding] * 2
            attrs = {"strides": strides, "pads": pads, "dilations": [1, 1], "group": 1}
            nodes[layer.name] = Node(
                layer.name, "Conv", conv.inputs, shape, attrs, _zeros(weight, conv.shape[:1])
            )
        elif layer.op == "Linear":
            params = _zeros((layer.shape[0], by_name[layer.inputs[0]].shape[0]), layer.shape)
            nodes[layer.name] = Node(layer.name, "Linear", layer.inputs, shape, {}, params)
        elif layer.op == "Flatten":
            nodes[layer.name] = Node(layer.name, "Reshape", layer.inputs, shape, {"shape": shape})
        elif layer.op != "Conv":
            nodes[layer.name] = Node(layer.name, layer.op, layer.inputs, shape)
    return Graph(nodes, (of[0].name,), (of[-1].name,), ("float32",))


def _zeros(weight: tuple[int, ...], bias: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    return {"weight": np.zeros(weight, np.float32), "bias": np.zeros(bias, np.float32)}


def _module(layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module | None:
    if layer.op == "Conv":
        wide = shapes[layer.inputs[0]][0]
        return nn.Conv2d(
            wide, layer.shape[0], layer.kernel, layer.stride, layer.padding, bias=False
        )
    if layer.op == "BatchNorm":
        return nn.BatchNorm2d(layer.shape[0])
    if layer.op == "Linear":
        return nn.Linear(shapes[layer.inputs[0]][0], layer.shape[0])
    return None


def _initialise(part: nn.Module, generator: torch.Generator | None) -> None:
    """He et al. (2015): variance 2 / fan-in, drawn from ``generator``."""
    if isinstance(part, nn.Conv2d | nn.Linear):
        fan_in = part.weight[0].numel()
        part.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
        if part.bias is not None:
            part.bias.zero_()


def _per_channel(value: Tensor) -> Tensor:
    return value.reshape(1, -1, 1, 1)


def _gain_and_shift(part: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    gain = part.weight * torch.rsqrt(variance + part.eps)
    return gain, part.bias - mean * gain


def _measured(part: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of ``x [B, C, H, W]``; the running averages move towards them, as torch's do."""
    variance, mean = torch.var_mean(x.to(part.weight.dtype), dim=(0, 2, 3), correction=0)
    count = x.numel() // x.shape[1]
    assert (
        part.running_mean is not None and part.running_var is not None and part.momentum is not None
    )
    with torch.no_grad():
        part.running_mean.lerp_(mean, part.momentum)
        part.running_var.lerp_(variance * (count / max(1, count - 1)), part.momentum)
    return mean, variance
