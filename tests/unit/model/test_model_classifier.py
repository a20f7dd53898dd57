"""A classifier on pixels equals the network on normalised, reordered inputs, and its gradient is
that of pixels."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from bitcrown.errors import ModelError, SettingsError
from bitcrown.model.classifier import GraphClassifier, layout_of
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node

MEAN = (Fraction("0.5"), Fraction("0.25"), Fraction("0.125"))
STD = (Fraction("0.2"), Fraction("0.3"), Fraction("0.4"))


def identity_graph(shape: tuple[int, ...]) -> Graph:
    """A network that returns its input, flat."""
    size = int(np.prod(shape))
    nodes = {
        "x": Node("x", "Input", (), shape),
        "y": Node("y", "Reshape", ("x",), (1, size), {"shape": (1, size)}),
    }
    return Graph(nodes, ("x",), ("y",), ("float32",))


@pytest.mark.parametrize(
    ("shape", "order"), [((1, 3, 4, 5), "chw"), ((1, 4, 5, 3), "hwc"), ((1, 60), "chw")]
)
def test_layout_is_read_off_the_input_shape(shape: tuple[int, ...], order: str) -> None:
    graph = identity_graph(shape)
    layout = layout_of(graph, (3, 4, 5), MEAN, STD)
    assert layout.order == order
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    logits = GraphClassifier(Network(graph, torch.float64), layout)(images)
    mean, std = (
        torch.tensor([float(v) for v in values])[:, None, None].double() for values in (MEAN, STD)
    )
    expected = (images - mean) / std
    expected = expected.permute(0, 2, 3, 1) if order == "hwc" else expected
    torch.testing.assert_close(logits, expected.reshape(2, -1))
    torch.testing.assert_close(layout.to_images(logits), images)


def test_gradient_reaches_the_pixels() -> None:
    model = GraphClassifier(
        Network(identity_graph((1, 12)), torch.float32),
        layout_of(identity_graph((1, 12)), (3, 2, 2), MEAN, STD),
    )
    images = torch.rand(1, 3, 2, 2, requires_grad=True)
    model(images).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad[0, :, 0, 0], torch.tensor([5.0, 1 / 0.3, 2.5]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="do not fit"):
        layout_of(identity_graph((1, 3, 4, 4)), (3, 4, 5))
    with pytest.raises(ModelError, match="say which"):
        layout_of(identity_graph((1, 3, 3, 3)), (3, 3, 3))
    assert layout_of(identity_graph((1, 3, 3, 3)), (3, 3, 3), order="hwc").order == "hwc"
    with pytest.raises(SettingsError, match="channels"):
        layout_of(identity_graph((1, 3, 4, 4)), (3, 4, 4), MEAN[:2], STD)
