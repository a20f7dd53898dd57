"""What a GPU changes, measured in one go: checks, tests, instances, root bounds, training, attacks.

gpu.py [--dry-run] [--suite FOLDER] [--images PATH] [--train PATH ...] [--part NAME ...] [--scale S]
[--out FOLDER]

Each part is a process of its own with a time limit (``PARTS``; together below eight minutes, times
``--scale``), prints its rows as it goes, and cannot take the others with it: what a part had
measured before it failed or was stopped is kept. ``--dry-run`` walks through every part on the CPU
with the smallest sizes. Without data, images are smooth noise and labels random. The table goes to
the terminal, and everything to ``FOLDER/gpu.json``.

    check       driver, torch, onnxruntime, one product on the device against the host
    tests       the tests marked ``gpu``
    instances   each instance on the CPU and on the device, one after the other
    roots       root bounds of the five ResNets (``root_bounds.py``): interval, CROWN, alpha-CROWN
    training    images per second of ``resnet_small``, each method
    attacks     the suite ``standard`` on 100 images
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitcrown import Settings, load, verify
from bitcrown.evaluation.data.sets import read_images
from bitcrown.provenance import commit, dependency_versions, machine

HERE = Path(__file__).resolve().parent
PARTS = {"check": 20, "tests": 120, "instances": 90, "roots": 110, "training": 60, "attacks": 60}
"""Seconds that a part may take."""
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description="measure what a GPU changes", allow_abbrev=False)
    parser.add_argument(
        "--dry-run", action="store_true", help="every part on the CPU, as small as possible"
    )
    parser.add_argument(
        "--suite", type=Path, default=HERE / "quickstart", metavar="FOLDER", help="of instances.csv"
    )
    parser.add_argument(
        "--images", type=Path, metavar="PATH", help="CIFAR-100 images (default: noise)"
    )
    parser.add_argument(
        "--train", type=Path, nargs="+", default=[], metavar="PATH", help="training images"
    )
    parser.add_argument(
        "--part", choices=PARTS, action="append", help="only this one (may be repeated)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="S", help="times all time limits (default: 1)"
    )
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), metavar="FOLDER")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = "cpu" if options.dry_run else "cuda"
    if options.one:
        for row in MEASURES[options.one](options):
            print(json.dumps(row), flush=True)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    record: Row = {
        "commit": commit(),
        "machine": machine(),
        "versions": dependency_versions(),
        "parts": {},
    }
    failed = 0
    for name in options.part or PARTS:
        record["parts"][name] = part = run_part(name, PARTS[name] * options.scale, options.out)
        failed += part["state"] != "done" or any(row.get("failed") for row in part["rows"])
        show(name, part)
        (options.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def run_part(name: str, seconds: float, out: Path) -> Row:
    """Rows of one part; its own output goes to ``NAME.log``."""
    started, lines = time.monotonic(), out / f"{name}.rows"
    with lines.open("wb") as rows, (out / f"{name}.log").open("wb") as log:
        command = [sys.executable, *sys.argv, "--one", name]
        process = subprocess.Popen(command, stdout=rows, stderr=log, start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
            state = "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            state = f"stopped after {seconds:.0f} s"
    found = [json.loads(line) for line in lines.read_text().splitlines() if line.startswith("{")]
    return {"state": state, "seconds": round(time.monotonic() - started, 1), "rows": found}


def show(name: str, part: Row) -> None:
    print(f"\n## {name}: {part['state']}, {part['seconds']} s")
    for row in part["rows"]:
        print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def check(options: argparse.Namespace) -> Iterator[Row]:
    import onnxruntime

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "torch sees no CUDA device: is the driver there, and is this torch a CUDA build?"
        )
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    free = torch.cuda.mem_get_info()[0] / 2**30 if options.device == "cuda" else 0.0
    yield {
        "device": name,
        "free_gib": round(free, 1),
        "onnxruntime": onnxruntime.get_available_providers(),
    }
    for dtype, limit in ((torch.float64, 1e-14), (torch.float32, 1e-5)):
        a, b = (torch.randn(512, 512, dtype=dtype) for _ in range(2))
        exact = a.double() @ b.double()
        error = float(
            ((a.to(options.device) @ b.to(options.device)).cpu() - exact).norm() / exact.norm()
        )
        yield {"product": str(dtype), "relative_error": f"{error:.1e}", "failed": not error < limit}


def tests(options: argparse.Namespace) -> Iterator[Row]:
    """pytest's own summary; the dry run only collects."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "--durations=8",
    ]
    command += ["--collect-only"] if options.dry_run else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
    print(done.stdout[-8000:], done.stderr[-4000:], file=sys.stderr)
    lines = done.stdout.strip().splitlines()
    for line in lines:
        if line.startswith(("FAILED", "ERROR")) or (line[:1].isdigit() and "s call" in line):
            yield {"test": line[:150]}
    yield {"pytest": lines[-1] if lines else "", "failed": done.returncode != 0}


def instances(options: argparse.Namespace) -> Iterator[Row]:
    """At most twelve; both devices have the same limit, and must not contradict one another."""
    with (options.suite / "instances.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3 and not row[0].startswith("[")]
    limit = 2.0 if options.dry_run else 6.0
    verify(
        load(options.suite / rows[0][0], options.suite / rows[0][1]),
        Settings(device=options.device),
        seconds=limit,
    )
    for onnx, vnnlib, _ in rows[: 2 if options.dry_run else 12]:
        problem = load(options.suite / onnx, options.suite / vnnlib)
        row: Row = {"instance": f"{Path(onnx).name} {Path(vnnlib).name}"[:70]}
        for device in ("cpu", options.device):
            started = time.monotonic()
            found = verify(problem, Settings(device=device), seconds=limit)
            work = found.counters.get("boxes_bounded", found.counters.get("domains", 0))
            row[device] = f"{found.status.value} {time.monotonic() - started:.2f} s, {work} domains"
        words = {row[device].split()[0] for device in ("cpu", options.device)}
        yield row | {"failed": words >= {"sat", "unsat"}}


def roots(options: argparse.Namespace) -> Iterator[Row]:
    script = HERE / "cifar100_tinyimagenet_resnet/root_bounds.py"
    models = ("resnet_small", "resnet_medium", "resnet_super", "tiny_resnet_medium", "resnet_large")
    for model in ("resnet_mini",) if options.dry_run else models:
        data = (
            ["--data", str(options.images), "--steps", "8"]
            if options.images and model[:4] != "tiny"
            else []
        )
        for method in ("interval", "alpha"):
            command = [sys.executable, str(script), "--one", "--model", model, "--method", method]
            command += [
                "--device",
                options.device,
                *data,
                "--iterations",
                "2" if options.dry_run else "20",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            kept = (
                "model",
                "method",
                "wall_s",
                "cpu_s",
                "peak_gib",
                "device_gib",
                "unstable",
                "positive",
                "rows",
            )
            yield from ({key: row[key] for key in kept if key in row} for row in rows)
            if done.returncode:
                yield {
                    "model": model,
                    "method": method,
                    "failed": done.stderr.strip()[-300:] or done.returncode,
                }


def training(options: argparse.Namespace) -> Iterator[Row]:
    """Images per second after the first epoch, whose steps are recorded; batches of 256."""
    from bitcrown.train.architectures import architecture
    from bitcrown.train.images import NORMALISATIONS, Normalisation
    from bitcrown.train.settings import TrainSettings
    from bitcrown.train.training import Images, new_run, train

    count = 512 if options.dry_run else 12800
    x, y = labelled(options.train[0] if options.train else None, count)
    for method in ("natural", "adversarial", "certified", "mixed"):
        for precision in ("full", "mixed"):
            changed: Row = {
                "eps_schedule": "constant",
                "kappa_start": 0.0,
                "attack_steps": 3,
                "precision": precision,
            }
            settings = TrainSettings(
                1 / 255, method, 2, batch=256, device=options.device, **changed
            )
            run = new_run(
                architecture("resnet_small"), settings, Normalisation(*NORMALISATIONS["cifar100"])
            )
            for _ in train(
                run,
                Images.of(x, y, torch.device(options.device)),
                until=1 if options.dry_run else 2,
            ):
                pass
            seconds = run.seconds - (run.history[0]["seconds"] if run.epoch > 1 else 0)
            losses: Row = {
                key: round(run.history[-1][key], 3)
                for key in ("natural", "certified", "adversarial")
                if key in run.history[-1]
            }
            yield {
                "method": method,
                "precision": precision,
                "images_per_s": round(len(y) / seconds),
                **losses,
            }


def attacks(options: argparse.Namespace) -> Iterator[Row]:
    import bitcrown

    network = HERE / "cifar100_resnet_mini/onnx/natural.onnx"
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)
    x, y = labelled(options.images, 1 if options.dry_run else 100)
    for suite in ("black-box",) if options.dry_run else ("standard",):
        started = time.monotonic()
        found = bitcrown.attack(
            network,
            x,
            y,
            "1/255",
            suite=suite,
            mean=mean,
            std=std,
            settings=Settings(device=options.device),
        )
        yield {
            "suite": suite,
            "images": len(y),
            "robust": round(float(found.robust_accuracy()), 4),
            "seconds": round(time.monotonic() - started, 1),
        }


def labelled(path: Path | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images and labels; smooth noise with labels at random where there is no file."""
    if path is not None:
        found = read_images(path, first=count)
        return found.images, found.labels
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    return images.numpy(), torch.randint(0, 100, (count,), generator=generator).numpy()


MEASURES = {
    "check": check,
    "tests": tests,
    "instances": instances,
    "roots": roots,
    "training": training,
    "attacks": attacks,
}

if __name__ == "__main__":
    sys.exit(main())
