"""A small convolutional classifier, trained for a moment, as an ONNX file made of onnx nodes
alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

SHAPE = (1, 6, 6)
CLASSES = 3
MEAN, STD = 0.25, 0.5


def blobs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """8-bit images ``[B, 1, 6, 6]`` of three kinds: a faint spot at one of three places, in
    noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    centre = np.array([[1, 1], [4, 4], [1, 4]])[labels]
    rows, columns = np.mgrid[0:6, 0:6]
    distance = (rows - centre[:, :1, None]) ** 2 + (columns - centre[:, 1:, None]) ** 2
    images = 60 * np.exp(-distance / 3) + generator.normal(90, 60, (count, 6, 6))
    return np.clip(images, 0, 255).astype(np.uint8)[:, None], labels


def train(images: np.ndarray, labels: np.ndarray, steps: int) -> list[np.ndarray]:
    """Weights of Conv(4, 3x3, stride 2, pad 1)-Relu-Gemm(24)-Relu-Gemm, by full-batch Adam."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(36, 24),
        torch.nn.ReLU(),
        torch.nn.Linear(24, CLASSES),
    )
    x = (torch.from_numpy(images).float() / 255 - MEAN) / STD
    y = torch.from_numpy(labels)
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return [parameter.detach().numpy() for parameter in model.parameters()]


def write_classifier(path: Path, weights: list[np.ndarray]) -> Path:
    names = ("kernel", "kernel_bias", "matrix", "matrix_bias", "last", "last_bias")
    nodes = [
        helper.make_node(
            "Conv", ["x", "kernel", "kernel_bias"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "matrix", "matrix_bias"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "last", "last_bias"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in zip(names, weights, strict=True)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path
