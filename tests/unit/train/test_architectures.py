"""The five benchmark networks: their size, and the same function as torch, as ONNX and in our
reader."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from bitcrown.errors import SettingsError
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from bitcrown.train.architectures import ARCHITECTURES, architecture
from bitcrown.train.network import TrainableNetwork
from bitcrown.train.onnx_export import write_onnx

PUBLISHED = {
    "resnet_small": (1_352_600, 9),
    "resnet_medium": (2_536_344, 17),
    "resnet_large": (3_808_152, 17),
    "resnet_super": (7_916_888, 19),
    "tiny_resnet_medium": (3_616_144, 17),
}
"""Weights, and convolutions besides the shortcuts."""


def used(name: str) -> TrainableNetwork:
    """A network whose batch norms have seen images, so that none of their four arrays is
    trivial."""
    generator = torch.Generator().manual_seed(1)
    network = TrainableNetwork(ARCHITECTURES[name], generator)
    with torch.no_grad():
        for part in network.parts.values():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.uniform_(-0.5, 0.5, generator=generator)
        network.clean_pass(torch.randn(4, *network.architecture.input_shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    weights, convolutions = PUBLISHED[name]
    network = TrainableNetwork(ARCHITECTURES[name])
    assert network.size() == weights
    main = [layer for layer in network.layers if layer.op == "Conv" and layer.kernel == 3]
    assert len(main) == convolutions


@pytest.mark.parametrize("name", [*PUBLISHED, "resnet_mini"])
def test_onnx_round_trip(name: str, tmp_path: Path) -> None:
    network, path = used(name), tmp_path / "net.onnx"
    write_onnx(network, path)
    model = onnx.load(path)
    assert sum(np.prod(weight.dims) for weight in model.graph.initializer) == network.size()
    nodes = Counter(node.op_type for node in model.graph.node)
    assert set(nodes) == {"Conv", "BatchNormalization", "Relu", "Add", "Flatten", "Gemm"}
    assert nodes["Conv"] == nodes["BatchNormalization"]

    x = torch.randn(
        1, *network.architecture.input_shape, generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        expected = network(x).numpy()
        folded = network.folded()(x.flatten(1)).numpy()
        read = Network(read_graph(path), torch.float64)(x.double().flatten(1)).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (ran,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    scale = np.abs(expected).max()
    for other in (folded, read, ran):
        assert np.abs(other - expected).max() < 1e-4 * scale


def test_every_batch_norm_matches_torch() -> None:
    """Own moments against torch's module, in value and in the running averages."""
    network = TrainableNetwork(ARCHITECTURES["resnet_mini"], torch.Generator().manual_seed(0))
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    reference = TrainableNetwork(ARCHITECTURES["resnet_mini"])
    reference.load_state_dict(network.state_dict())
    values = {"x": x}
    for layer in reference.layers[1:]:
        inputs = [values[name] for name in layer.inputs]
        if layer.name in reference.parts:
            values[layer.name] = reference.parts[layer.name](inputs[0])
        elif layer.op == "Add":
            values[layer.name] = inputs[0] + inputs[1]
        else:
            values[layer.name] = inputs[0].relu() if layer.op == "Relu" else inputs[0].flatten(1)
    logits, moments = network.clean_pass(x)
    assert torch.allclose(logits, values["logits"], atol=1e-4)
    assert torch.allclose(network.folded(moments)(x.flatten(1)), logits, atol=1e-4)
    for key, value in reference.state_dict().items():
        if "running" in key:
            assert torch.allclose(network.state_dict()[key], value, atol=1e-5), key


def test_unknown_names_and_impossible_sizes_are_refused() -> None:
    with pytest.raises(SettingsError, match="resnet_small"):
        architecture("resnet_tiny")
    with pytest.raises(SettingsError, match="larger images"):
        architecture("resnet_super", input_shape=(3, 2, 2))
    assert architecture("resnet_small", classes=10).classes == 10
