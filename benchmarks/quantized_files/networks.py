"""Small networks for images of 14 x 14 (means of 2 x 2 pixels of MNIST), and their training.

Each has ten logits. The kinds are those that engineers quantize: perceptron, convolutions, residual
blocks with batch normalisation, squeeze and excitation, a transformer, an LSTM over rows.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 14
SHAPE = (1, 1, SIDE, SIDE)


def mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 14, 14]`` in [0, 1] and labels ``[N]`` of the ten thousand test images."""
    with gzip.open(folder / "mnist-t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "mnist-t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    images = F.avg_pool2d(torch.from_numpy(pixels.astype(np.float32) / 255), 2)
    return images, torch.from_numpy(labels)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, stride=2)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.norm(self.two(torch.relu(self.one(x)))))
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(1, 8, 3, padding=1, stride=2), nn.Conv2d(8, 4, 1)
        self.up, self.mixed = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.last = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.first(x))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        logits: Tensor = self.last(torch.relu(self.mixed(x * gate)).flatten(1))
        return logits


class Transformer(nn.Module):
    """Seven tokens of two rows each, one block, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(28, 16), nn.Parameter(0.1 * torch.randn(1, 7, 16))
        self.mixed, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.wide, self.narrow, self.last = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(-1, 7, 28)) + self.places
        q, k, v = self.mixed(self.norms[0](x)).reshape(-1, 7, 3, 2, 8).permute(2, 0, 3, 1, 4)
        shares = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
        x = x + self.out((shares @ v).permute(0, 2, 1, 3).reshape(-1, 7, 16))
        x = x + self.narrow(F.gelu(self.wide(self.norms[1](x))))
        logits: Tensor = self.last(x.mean(1))
        return logits


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTM(SIDE, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x.reshape(-1, SIDE, SIDE).transpose(0, 1))
        logits: Tensor = self.last(states[-1])
        return logits


def network(kind: str) -> nn.Module:
    """An untrained network; ``kind`` is ``mlp``, ``cnn``, ``res``, ``se``, ``tf`` or ``lstm``."""
    if kind == "mlp":
        parts: list[nn.Module] = [nn.Flatten(), nn.Linear(SIDE**2, 32), nn.ReLU()]
        return nn.Sequential(*parts, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    if kind == "cnn":
        parts = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        parts += [nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(108, 10))
    return {"res": Residual, "se": SqueezeExcite, "tf": Transformer, "lstm": Rows}[kind]()


def trained(net: nn.Module, images: Tensor, labels: Tensor, passes: int = 3) -> nn.Module:
    """``net`` after ``passes`` through the images, in the order of torch's generator."""
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    net.train()
    for _ in range(passes):
        for batch in torch.split(torch.randperm(len(images)), 100):
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(net(images[batch]), labels[batch]))
            optimiser.step()
    return net.eval()
