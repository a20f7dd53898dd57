"""CPU seconds of the suite ``standard`` beside torchattacks' AutoAttack, with what each of them
broke, image by image.

    python benchmarks/attack_speed.py net.onnx --data images --first 200 --eps 2/255,8/255 --mean
    ... --std ...

Both get the same images, budgets (100 steps, 9 targets, 5000 queries) and one thread, in one
process, one after the other; torchattacks gets the network as a plain module of torch. It is
optional: where it is not installed (``pip install torchattacks`` into a folder on PYTHONPATH will
do), only bitcrown's column is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitcrown.attacks.images.suite import Progress, run_suite
from bitcrown.evaluation.attacking import ball_of
from bitcrown.evaluation.data.sets import read_images
from bitcrown.model.classifier import GraphClassifier, read_classifier
from bitcrown.model.file import NetworkFile

NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")
STEPS = 100


class Outcome(NamedTuple):
    """CPU seconds and broken images by component, and the component that broke each image ("" for
    none)."""

    seconds: dict[str, float]
    broken_by: list[str]

    def row(self, name: str) -> str:
        return f"{sum(by == name for by in self.broken_by):>10}{self.seconds.get(name, 0.0):>12.2f}"


class Plain(nn.Module):
    """The network as anyone would write it: functions of torch on ``[B, C, H, W]``, weights that
    need no gradient."""

    def __init__(self, classifier: GraphClassifier) -> None:
        super().__init__()
        self.graph = classifier.network.graph
        self.params = classifier.network.params
        layout, like = classifier.layout, torch.zeros(1)
        if layout.order != "chw":
            raise SystemExit("the comparison is written for networks with channels first")
        self.mean, self.std = (
            layout.channel_values(layout.mean, like),
            layout.channel_values(layout.std, like),
        )

    def forward(self, x: Tensor) -> Tensor:
        values = {self.graph.inputs[0]: (x - self.mean) / self.std}
        for node in self.graph.nodes.values():
            if node.op == "Input":
                continue
            operands, params = [values[name] for name in node.inputs], self.params[node.name]
            if node.op == "Conv":
                attrs = node.attrs
                value = F.conv2d(
                    operands[0], params["weight"], params.get("bias"), attrs["strides"],
                    attrs["pads"],
                    attrs["dilations"], attrs["group"],
                )  # fmt: skip
            elif node.op == "Linear":
                value = F.linear(operands[0], params["weight"], params.get("bias"))
            elif node.op == "Relu":
                value = torch.relu(operands[0])
            elif node.op == "Add":
                value = operands[0] + operands[1]
            elif node.op == "Reshape":
                value = operands[0].flatten(1)
            else:
                raise SystemExit(f"the comparison has no {node.op}")
            values[node.name] = value
        return values[self.graph.outputs[0]]


def ours(
    classifier: GraphClassifier, images: Tensor, labels: Tensor, eps: Fraction, batch: int
) -> Outcome:
    seconds: dict[str, float] = {}
    began = [time.process_time()]

    def note(progress: Progress) -> None:
        now = time.process_time()
        seconds[progress.name] = seconds.get(progress.name, 0.0) + now - began[0]
        began[0] = now

    ball = ball_of(eps, "Linf")
    found = run_suite(
        classifier, images, labels, ball, suite="standard", seed=0, batch=batch, on_progress=note
    )
    seconds["replay"] = time.process_time() - began[0]
    return Outcome(seconds, [name or "" for name in found.broken_by])


def theirs(module: nn.Module, images: Tensor, labels: Tensor, eps: Fraction) -> Outcome:
    import torchattacks

    attack = torchattacks.AutoAttack(
        module, norm="Linf", eps=float(eps), version="standard", n_classes=10, seed=0
    )
    with torch.no_grad():
        standing = (module(images).argmax(dim=1) == labels).nonzero().flatten()
    seconds, broken_by = {}, [""] * len(images)
    for name, part in zip(NAMES, attack._autoattack.attacks, strict=True):
        if hasattr(part, "steps"):
            part.steps = STEPS  # its own default is 10, the suite's budget 100
        began = time.process_time()
        found: Any = part(images[standing], labels[standing])
        with torch.no_grad():
            wrong = module(found).argmax(dim=1) != labels[standing]
        seconds[name] = time.process_time() - began
        for image in standing[wrong].tolist():
            broken_by[image] = name
        standing = standing[~wrong]
        if not len(standing):
            break
    return Outcome(seconds, broken_by)


def print_table(eps: Fraction, mine: Outcome, other: Outcome | None) -> None:
    print(f"\neps {eps}   {'bitcrown':>21}{'torchattacks' if other else '':>24}")
    print(f"{'':10}{'broken':>10}{'CPU s':>12}" + (f"{'broken':>12}{'CPU s':>12}" if other else ""))
    for name in NAMES:
        print(f"{name:10}{mine.row(name)}" + (f"  {other.row(name)}" if other else ""))
    total = sum(mine.seconds.values())
    line = f"{'all':10}{sum(map(bool, mine.broken_by)):>10}{total:>12.2f}"
    if other is None:
        print(line)
        return
    theirs_total = sum(other.seconds.values())
    print(
        f"{line}  {sum(map(bool, other.broken_by)):>10}{theirs_total:>12.2f}   ratio "
        f"{total / theirs_total:.2f}"
    )
    for image, (first, second) in enumerate(zip(mine.broken_by, other.broken_by, strict=True)):
        if first != second:
            print(f"image {image}: {first or 'stands'} here, {second or 'stands'} there")


def numbers(word: str) -> list[Fraction]:
    return [Fraction(part) for part in word.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--eps", type=numbers, default=[Fraction(2, 255), Fraction(8, 255)])
    parser.add_argument("--mean", type=numbers)
    parser.add_argument("--std", type=numbers)
    parser.add_argument("--batch", type=int, default=250)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = read_images(given.data, first=given.first)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    classifier = read_classifier(NetworkFile(given.network), data.shape, given.mean, given.std)
    has_other = importlib.util.find_spec("torchattacks") is not None
    if not has_other:
        print("torchattacks is not installed: only bitcrown is measured")
    for eps in given.eps:
        mine = ours(classifier, images, labels, eps, given.batch)
        other = theirs(Plain(classifier), images, labels, eps) if has_other else None
        print_table(eps, mine, other)


if __name__ == "__main__":
    main()
