"""A trained network as an ONNX file: batch norm unfused, evaluation mode, no normalisation inside.

The nodes are those of the layer list: Conv, BatchNormalization (its four arrays a channel as
initializers), Relu, Add, Flatten, Gemm. Input and output have a batch axis of extent 1. Nothing but
``onnx.helper`` is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bitcrown.files import write_whole
from bitcrown.train.architectures import Layer
from bitcrown.train.network import TrainableNetwork

_OPSET = 13


def write_onnx(network: TrainableNetwork, path: Path) -> None:
    """Write ``network`` to ``path``, whole or not at all. Raises ``ResourceError``."""
    first, last = network.layers[0], network.layers[-1]
    weights: list[onnx.TensorProto] = []
    nodes = [_node(network, layer, weights) for layer in network.layers[1:]]
    graph = helper.make_graph(
        nodes,
        network.architecture.name,
        [helper.make_tensor_value_info(first.name, TensorProto.FLOAT, [1, *first.shape])],
        [helper.make_tensor_value_info(last.name, TensorProto.FLOAT, [1, *last.shape])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="bitcrown"
    )
    model.ir_version = 8
    onnx.checker.check_model(model)
    write_whole(path, model.SerializeToString())


def _node(
    network: TrainableNetwork, layer: Layer, weights: list[onnx.TensorProto]
) -> onnx.NodeProto:
    """The ONNX node of one layer; its arrays go into ``weights``."""
    part = network.part(layer)

    def stored(suffix: str, value: Tensor | None) -> str:
        assert value is not None
        name = f"{layer.name}.{suffix}"
        array = np.ascontiguousarray(value.detach().cpu().numpy(), dtype=np.float32)
        weights.append(numpy_helper.from_array(array, name))
        return name

    if isinstance(part, nn.Conv2d):
        return helper.make_node(
            "Conv",
            [*layer.inputs, stored("weight", part.weight)],
            [layer.name],
            name=layer.name,
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=[layer.padding] * 4,
        )
    if isinstance(part, nn.BatchNorm2d):
        arrays = (part.weight, part.bias, part.running_mean, part.running_var)
        named = zip(("weight", "bias", "running_mean", "running_var"), arrays, strict=True)
        inputs = [*layer.inputs, *(stored(suffix, value) for suffix, value in named)]
        return helper.make_node(
            "BatchNormalization", inputs, [layer.name], name=layer.name, epsilon=part.eps
        )
    if isinstance(part, nn.Linear):
        inputs = [*layer.inputs, stored("weight", part.weight), stored("bias", part.bias)]
        return helper.make_node("Gemm", inputs, [layer.name], name=layer.name, transB=1)
    return helper.make_node(layer.op, list(layer.inputs), [layer.name], name=layer.name)
