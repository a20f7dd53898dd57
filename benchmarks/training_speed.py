"""Images per CPU second of training, by method, beside what the arithmetic leaves.

    python benchmarks/training_speed.py [--before CHECKOUT] [--model resnet_small] [--images 1024]
    [--batch 128] [--threads 1] [--rounds 3]

A row is one loss at constant radius. *GFLOP* counts the products of one step (convolutions and
matrices, forward and backward, an addition and a multiplication each) per image; *limit* is how
many images a second a machine could do that spends its time on these alone, at the rate of two
1024 x 1024 matrices measured in the same process. ``--before`` is another checkout of
bitcrown (``git worktree add /some/folder COMMIT``), measured in turns with this one; the best of
``--rounds`` counts. Images are noise: what is in them changes no time. CPU seconds of one thread
hardly depend on what else the machine does, but caches do: run it alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
METHODS: dict[str, dict[str, Any]] = {
    "natural": {"method": "natural"},
    "adversarial": {"method": "adversarial"},
    "certified": {"method": "certified"},
    "mixed": {"method": "mixed"},
    "mixed, certified every 2nd step": {"method": "mixed", "certified_every": 2},
}
_SIDE = 1024
Measured = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="to compare with")
    parser.add_argument("--model", default="resnet_small")
    parser.add_argument("--images", type=int, default=1024, help="of the epoch that is measured")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", metavar="METHOD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options, METHODS[options.measure])))
        return 0
    sources = {"now": HERE.parents[1]} | ({"before": options.before} if options.before else {})
    print(
        f"| method | {' | '.join(f'{name}: images/CPU s' for name in sources)} "
        "| GFLOP an image | limit | share of it now |"
    )
    print("|---" * (len(sources) + 4) + "|")
    for method in METHODS:
        best: dict[str, Measured] = {}
        for _ in range(options.rounds):
            for name, source in sources.items():
                found = in_process(options, method, source)
                if found is not None and found["rate"] > best.get(name, found)["rate"] - 1e-9:
                    best[name] = found
        print(row(method, list(sources), best), flush=True)
    return 0


def row(method: str, names: list[str], best: dict[str, Measured]) -> str:
    """One line of the table; a dash where a checkout has no such method."""
    rates = [f"{best[name]['rate']:.1f}" if name in best else "-" for name in names]
    now = best.get("now")
    if now is None:
        return f"| {method} | {' | '.join(rates)} | - | - | - |"
    limit = now["peak"] / now["flop"]
    return (
        f"| {method} | {' | '.join(rates)} | {now['flop'] / 1e9:.2f} | {limit:.1f} "
        f"| {100 * now['rate'] / limit:.0f} % |"
    )


def in_process(options: argparse.Namespace, method: str, source: Path) -> Measured | None:
    """``measured`` with the code in ``source``; None where that code does not know the method."""
    words = [sys.executable, str(HERE), "--measure", method]
    for name in ("model", "images", "batch", "threads"):
        words += [f"--{name}", str(getattr(options, name))]
    threads = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    environment = {**os.environ, **threads, "PYTHONPATH": str(source.resolve() / "src")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"note: {method} in {source}: {done.stderr.strip()[-200:]}", file=sys.stderr)
        return None
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(options: argparse.Namespace, chosen: dict[str, Any]) -> Measured:
    """``rate`` (images a CPU second), ``flop`` (of products, an image), ``peak`` (FLOP a CPU
    second)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(options.threads)
    with FlopCounterMode(display=False) as counter:
        list(epochs(options, chosen, 2 * options.batch, 1))
    times = list(epochs(options, chosen, options.images, 2))
    images = options.images // options.batch * options.batch
    return {
        "rate": images / (times[1] - times[0]),
        "flop": counter.get_total_flops() / (2 * options.batch),
        "peak": peak(),
    }


def epochs(options: argparse.Namespace, chosen: dict[str, Any], images: int, count: int) -> Any:
    """Process time after each of ``count`` epochs of ``images``."""
    import numpy as np
    import torch

    from bitcrown.train.architectures import architecture
    from bitcrown.train.images import NORMALISATIONS, Normalisation
    from bitcrown.train.settings import TrainSettings
    from bitcrown.train.training import Images, new_run, train

    settings = TrainSettings(
        1 / 255, epochs=count, batch=options.batch, eps_schedule="constant", kappa_start=0.0,
        attack_steps=1, device="cpu", **chosen,
    )  # fmt: skip
    shape = architecture(options.model)
    random = np.random.default_rng(0)
    pixels = random.random((images, *shape.input_shape), dtype=np.float32)
    labels = random.integers(0, shape.classes, images)
    run = new_run(shape, settings, Normalisation(*NORMALISATIONS["cifar100"]))
    for _ in train(run, Images.of(pixels, labels, torch.device("cpu"))):
        yield time.process_time()


def peak() -> float:
    """FLOP a CPU second in the product of two square matrices, the best of ten."""
    import torch

    left, right = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE)
    times = []
    for _ in range(10):
        started = time.process_time()
        torch.mm(left, right)
        times.append(time.process_time() - started)
    return 2 * _SIDE**3 / min(times)


if __name__ == "__main__":
    sys.exit(main())
