"""Train a small network with the Robust-Model-Zoo's quantization block on CIFAR-10, adversarially,
on one core.

Madry et al. (2018) with one step from a random start and step size 1.25 eps (Wong, Rice & Kolter,
2020). The ball is empty at first and grows to its full size. The blocks are switched on for the
last part only: the network without them trains twice as fast. With them, values are those of the
quantized network and gradients those of BPDA: as published, the block's own gradient is NaN
wherever an activation lies just below a step, and nothing would be learnt.

    python benchmarks/robust_zoo/train_small.py TRAIN_IMAGES WEIGHTS.npz --epochs 40
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bitcrown.attacks.images.bpda import bpda
from bitcrown.attacks.images.victim import Classifier
from bitcrown.evaluation.data.sets import read_images
from bitcrown.zoo.networks import ZooNetwork, build_network
from bitcrown.zoo.weights import save_weights

WEIGHT_DECAY = 5e-4


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """``[B, C, H, W]`` shifted by up to 4 pixels (zeros come in) and mirrored, each image by
    itself."""
    count, _, high, wide = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    shift = torch.randint(0, 9, (2, count), generator=generator)
    rows = (shift[0].unsqueeze(1) + torch.arange(high))[:, None, :, None]
    columns = (shift[1].unsqueeze(1) + torch.arange(wide))[:, None, None, :]
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None, None, None], columns.flip(3), columns)
    channels = torch.arange(images.shape[1])[None, :, None, None]
    return padded[torch.arange(count)[:, None, None, None], channels, rows, columns]


def adversarial(
    model: Classifier, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator
) -> Tensor:
    """One signed step of 1.25 eps from a random point of the ball, back into ball and pixel
    range."""
    noise = (2 * torch.rand(images.shape, generator=generator) - 1) * eps
    start = (images + noise).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), labels), start)
    moved = start.detach() + 1.25 * eps * gradient.sign()
    return torch.minimum(torch.maximum(moved, images - eps), images + eps).clamp(0, 1)


def optimiser_of(network: ZooNetwork, rate: float) -> torch.optim.Optimizer:
    decayed = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    plain = [parameter for parameter in network.parameters() if parameter.dim() == 1]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def train(network: ZooNetwork, images: Tensor, labels: Tensor, chosen: argparse.Namespace) -> None:
    """One-cycle schedule over ``chosen.epochs``; prints a line and writes the weights every
    epoch."""
    without_blocks: Classifier = network.with_plan(quantized=False)
    with_blocks = bpda(network, chosen.rule)
    generator = torch.Generator().manual_seed(chosen.seed)
    steps = len(images) // chosen.batch
    optimiser = optimiser_of(network, chosen.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, chosen.rate, epochs=chosen.epochs, steps_per_epoch=steps, pct_start=0.25
    )
    for epoch in range(chosen.epochs):
        began, right, losses = time.process_time(), 0, 0.0
        share = epoch / chosen.epochs
        growth = (share - chosen.clean) / max(chosen.full - chosen.clean, 1e-9)
        eps = chosen.eps / 255 * min(1.0, max(0.0, growth))
        model = with_blocks if share >= chosen.blocks else without_blocks
        order = torch.randperm(len(images), generator=generator)[: steps * chosen.batch]
        for rows in torch.split(order, chosen.batch):
            x, y = (
                augmented(images[rows], generator).contiguous(memory_format=torch.channels_last),
                labels[rows],
            )
            x = adversarial(model, x, y, eps, generator) if eps else x
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses += loss.item()
            right += int((logits.argmax(1) == y).sum())
        print(
            f"epoch {epoch + 1}/{chosen.epochs} eps {eps * 255:.2f}/255 "
            f"{'with' if model is with_blocks else 'without'} blocks loss {losses / steps:.3f} "
            f"right on attacked images {right / steps / chosen.batch:.2%} "
            f"{time.process_time() - began:.0f} s of CPU",
            flush=True,
        )
        save_weights(network, chosen.weights)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="training images, any form that bitcrown reads")
    parser.add_argument("weights", type=Path, help="the .npz to write, after every epoch")
    parser.add_argument("--network", default="small")
    parser.add_argument("--rule", default="identity", help="BPDA rule of the training's gradients")
    parser.add_argument("--eps", type=float, default=8.0, help="in levels of 255")
    parser.add_argument("--clean", type=float, default=0.2, help="share of the epochs with eps 0")
    parser.add_argument(
        "--full", type=float, default=0.4, help="share of the epochs until eps is full"
    )
    parser.add_argument(
        "--blocks", type=float, default=0.7, help="share of the epochs without the blocks"
    )
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=None, help="only so many images")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = read_images(chosen.images, first=chosen.first)
    network = build_network(chosen.network, seed=chosen.seed)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(network, torch.from_numpy(found.images), torch.from_numpy(found.labels), chosen)


if __name__ == "__main__":
    main()
