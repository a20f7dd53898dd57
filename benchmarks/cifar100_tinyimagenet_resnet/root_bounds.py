"""Time and peak memory of root bounds of the five ResNets: interval, CROWN and alpha-CROWN for one
image each.

root_bounds.py [--model NAME ...] [--onnx FILE] [--method interval|crown|alpha ...] [--eps 1/255]
[--steps N] [--data PATH] [--memory-gib 2] [--iterations 20] [--out FILE]. Every model has processes
of its own, one for ``interval`` and one for ``crown`` and, after it, ``alpha``; peak memory is that
of the process so far, CPU seconds are of the bounds alone, without reading or making the network.
``crown`` includes the intermediate layers; ``alpha`` includes ``crown`` and then improves all
margins (99 or 199) together.

Weights: those of ``--onnx``, or random ones. With ``--steps N`` the random network is first trained
naturally for N steps on ``--data``. Random deep networks have many more unstable neurons than
trained ones; the record says how many. Without ``--data`` the image is smooth noise. One JSON line
a measurement goes to FILE, a table to the terminal.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bitcrown.bounds.ascent import Ascent, ascend
from bitcrown.bounds.crown import Backward, minimum, output_seeds
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.interval import interval_bounds
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.multipliers import Multipliers, proved_minimum
from bitcrown.bounds.rows import Rows
from bitcrown.errors import BitcrownError
from bitcrown.evaluation.data.sets import read_images
from bitcrown.files import append_record
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from bitcrown.provenance import commit, machine
from bitcrown.train.architectures import ARCHITECTURES, architecture
from bitcrown.train.images import NORMALISATIONS, Normalisation, middle_crop
from bitcrown.train.network import TrainableNetwork
from bitcrown.train.settings import TrainSettings, radius_of
from bitcrown.train.step import optimiser_of
from bitcrown.train.training import Images, TrainingRun, train

METHODS = ("interval", "crown", "alpha")
MODELS = ("resnet_small", "resnet_medium", "resnet_large", "resnet_super", "tiny_resnet_medium")
BATCH = 32
COLUMNS = (
    "model",
    "weights",
    "method",
    "cpu_s",
    "wall_s",
    "peak_gib",
    "unstable",
    "neurons",
    "positive",
    "rows",
)


def main() -> int:
    parser = argparse.ArgumentParser(description="root bounds of the ResNets", allow_abbrev=False)
    parser.add_argument(
        "--model", choices=ARCHITECTURES, action="append", help="(default: the five)"
    )
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="weights of one --model")
    parser.add_argument("--method", choices=METHODS, action="append", help="(default: all)")
    parser.add_argument("--eps", default="1/255")
    parser.add_argument(
        "--steps", type=int, default=0, metavar="N", help="natural training steps first"
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="images; the first is bounded")
    parser.add_argument(
        "--memory-gib", type=float, default=2.0, metavar="G", help="budget of one pass (default: 2)"
    )
    parser.add_argument(
        "--iterations", type=int, default=20, metavar="N", help="of alpha-CROWN (default: 20)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--out", type=Path, default=Path("results/root_bounds.jsonl"), metavar="FILE"
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        try:
            for row in measured(options, options.model[0], options.method[0]):
                print(json.dumps(row))
        except BitcrownError as error:
            print(f"root_bounds: {error}", file=sys.stderr)
            return 2
        return 0
    print(" | ".join(COLUMNS))
    for model in options.model or MODELS:
        for method in processes(options.method or METHODS):
            command = [sys.executable, *sys.argv, "--model", model, "--method", method, "--one"]
            done = subprocess.run(
                without_choices(command), capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(
                    f"{model} {method}: "
                    f"{done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}"
                )
                continue
            for row in map(json.loads, done.stdout.splitlines()):
                append_record(options.out, row | {"commit": commit(), "machine": machine()})
                print(" | ".join(str(row[column]) for column in COLUMNS), flush=True)
    return 0


def processes(methods: Sequence[str]) -> list[str]:
    """``alpha`` begins with ``crown`` and reports both."""
    return [method for method in methods if not (method == "crown" and "alpha" in methods)]


def without_choices(command: list[str]) -> list[str]:
    """The command with only the last ``--model`` and ``--method``."""
    result: list[str] = []
    last = {word: len(command) - 1 - command[::-1].index(word) for word in ("--model", "--method")}
    for number, word in enumerate(command):
        before = command[number - 1]
        is_old = (word in last and number != last[word]) or (
            before in last and number - 1 != last[before]
        )
        if not is_old:
            result.append(word)
    return result


def measured(options: argparse.Namespace, model: str, method: str) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    eps, size = radius_of(options.eps), architecture(model).input_shape
    normalise = Normalisation(
        *NORMALISATIONS["tinyimagenet" if model.startswith("tiny") else "cifar100"]
    )
    image, label = first_image(options.data, size)
    network = network_of(options, model, normalise, image.to(options.device))
    box = normalise.box(image.double().to(options.device), eps)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time(), time.monotonic()
    with torch.no_grad():
        for name, values, facts in bounds_by(method, network, box, label, options):
            cpu, wall = time.process_time() - started[0], time.monotonic() - started[1]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            yield {
                "model": model,
                "weights": "onnx" if options.onnx else f"{options.steps} steps",
                "method": name,
                "eps": eps,
                "cpu_s": round(cpu, 1),
                "wall_s": round(wall, 1),
                "peak_gib": round(peak / (1 << 20), 2),
                **device_memory(options.device),
                "before_gib": round(before / (1 << 20), 2),
                "rows": values.numel(),
                "positive": int((values > 0).sum()),
                "least": float(values.min()),
                "memory_gib": options.memory_gib,
                **facts,
            }


def device_memory(device: str) -> dict[str, float]:
    return (
        {"device_gib": round(torch.cuda.max_memory_allocated() / (1 << 30), 2)}
        if device == "cuda"
        else {}
    )


def first_image(data: Path | None, size: tuple[int, int, int]) -> tuple[torch.Tensor, int]:
    """``[1, C, H, W]`` and its label; smooth noise where there is no data."""
    if data is not None:
        found = read_images(data, first=1)
        return middle_crop(torch.as_tensor(found.images), *size[1:]), int(found.labels[0])
    noise = torch.rand(1, size[0], 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size[1:], mode="bilinear"), 0


def network_of(
    options: argparse.Namespace, model: str, normalise: Normalisation, image: torch.Tensor
) -> Network:
    """The network in float64; random weights see a few images first so that batch norms have
    moments."""
    if options.onnx:
        return Network(read_graph(options.onnx), torch.float64, options.device)
    network = TrainableNetwork(architecture(model), torch.Generator().manual_seed(0)).to(
        options.device
    )
    if options.steps:
        if options.data is None:
            raise BitcrownError("--steps needs --data to train on")
        found = read_images(options.data, first=BATCH * options.steps, train=True)
        settings = TrainSettings(
            1 / 255, "natural", epochs=1, batch=BATCH, padding=0, device=options.device
        )
        run = TrainingRun(network, optimiser_of(network, settings), settings, normalise)
        for _ in train(run, Images.of(found.images, found.labels, torch.device(options.device))):
            pass
    noise = (
        torch.randn(BATCH, *image.shape[1:], generator=torch.Generator().manual_seed(1)) * 0.1
    ).to(image.device)
    with torch.no_grad():
        if not options.steps:
            for part in (
                network.parts.values()
            ):  # random, not the training start, whose blocks are shortcuts
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.weight.fill_(1.0)
                    part.momentum = 1.0
            network.clean_pass(normalise((image + noise).clamp(0, 1)))
        return network.double().folded()


def bounds_by(
    method: str,
    network: Network,
    box: tuple[torch.Tensor, torch.Tensor],
    label: int,
    options: argparse.Namespace,
) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
    """Methods, lower bounds of all margins of ``label``, and how many ReLU inputs are undecided."""
    classes, memory = network.graph.n_outputs, int(options.memory_gib * (1 << 30))
    every = torch.eye(classes, dtype=torch.float64, device=network.device)
    rows = (every[label] - every)[torch.arange(classes, device=network.device) != label].unsqueeze(
        0
    )
    if method == "interval":
        bounds = interval_bounds(network, *box)
        low, up = (bound.flatten(1) for bound in bounds[network.graph.outputs[0]])
        values = torch.clamp(rows, min=0) @ low.unsqueeze(2) + torch.clamp(
            rows, max=0
        ) @ up.unsqueeze(2)
        yield method, values, counted(network, bounds)
        return
    enclosure = LayerBounder(network, memory).run(*box)
    facts = counted(network, enclosure.bounds)
    backward = Backward(network, enclosure.relaxations, scales=enclosure.scales)
    yield "crown", minimum(backward.run(output_seeds(network, rows)), *box, backward.gamma), facts
    if method == "crown":
        return
    layout = Layout(network)
    guide = network.with_params(
        {
            name: {key: value.float() for key, value in params.items()}
            for name, params in network.params.items()
        }
    )
    per_row = 6 * 4 * sum(node.size for node in network.graph.nodes.values())
    found = []
    for part in torch.split(rows.transpose(0, 1), max(1, memory // per_row)):
        count = len(part)
        tall = Rows(part, None, part.new_zeros(count, 1), *(x.expand(count, -1) for x in box))
        alpha = layout.default_alpha(enclosure.bounds).float().unsqueeze(1).expand(count, 1, -1)
        with torch.enable_grad():
            start = Multipliers(layout, alpha)
            best, _ = ascend(
                guide, tall, enclosure.bounds, start, Ascent(options.iterations, rate_alpha=0.25)
            )
        found.append(proved_minimum(network, tall, enclosure.bounds, enclosure.scales, best))
    yield method, torch.cat(found), facts


def counted(network: Network, bounds: Any) -> dict[str, Any]:
    unstable = neurons = 0
    for node in network.graph.nodes.values():
        if node.op == "Relu":
            low, up = bounds[node.inputs[0]]
            unstable += int(((low < 0) & (up > 0)).sum())
            neurons += node.size
    return {"unstable": unstable, "neurons": neurons}


if __name__ == "__main__":
    sys.exit(main())
