"""Classifiers small enough to know the answer: linear ones and a small convolution, on 3x4x4
images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHAPE = (3, 4, 4)


class Linear:
    """``W x + b`` on flat images; ``calls`` counts the images it was asked about."""

    def __init__(self, seed: int, classes: int = 4) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(classes, 48, generator=generator)
        self.bias = 0.1 * torch.randn(classes, generator=generator) - self.weight.sum(dim=1) / 2
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += len(x)
        return x.flatten(1) @ self.weight.T + self.bias


def conv_net(seed: int, classes: int = 5) -> nn.Module:
    """Two convolutions and a dense layer, scaled so that all classes occur and the margins
    differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, classes),
        )  # fmt: skip
    net.requires_grad_(False)
    for layer in (net[0], net[2]):
        layer.weight *= 2.0
    net[5].weight *= 5.0
    net[5].bias -= net(some_images(200, seed + 100)).mean(dim=0)
    return net


def some_images(count: int, seed: int = 0) -> Tensor:
    """Random images in the middle of the range, with pixels at its ends among them."""
    generator = torch.Generator().manual_seed(seed)
    return (1.4 * torch.rand(count, *SHAPE, generator=generator) - 0.2).clamp(0.0, 1.0)
