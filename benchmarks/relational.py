"""The relational benchmarks of VNN-COMP 2026, rebuilt from their authors' networks and a seed.

    python benchmarks/relational.py make NETS OUT [--seed 1] [--count 20]
    python benchmarks/relational.py run OUT JOURNAL [--seconds 60] [--seed 0] [--total 1800]
    python benchmarks/relational.py table JOURNAL...

``NETS`` has the folders ``nets`` and ``nets_pruned`` of *acasxu-isomorphic-networks-benchmark* and
the network of *acc-non-linear-properties-benchmark* as ``acc.onnx``.

``isomorphic``: a network and itself without 5, 10 or 30 % of its neurons, on the authors' box, do
some outputs differ by more than 0.05? Most pairs do so at once; the authors' set hardly has any, so
nine of ten are drawn from those that 20,000 samples find close. ``monotonic``: one network at two
distances, does an output fall (or rise)? Even numbers are the authors' box, where it does; odd ones
are parts of it, a quarter as wide, where samples find nothing. ``acc``: the authors' boxes and
their assertion.

``run`` takes the instances in random order, each in a process of its own, and writes a line to the
journal as each is done; lines that are there are not repeated, and nothing begins after ``total``
seconds of computing. ``table`` prints Markdown: counts, and a row for each instance; of two
journals the verdicts stand side by side.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from network_pairs import Layers

LOW, UP = (0.6, -0.5, -0.5, 0.45, -0.45), (0.679857769, 0.5, 0.5, 0.5, -0.45)
LIMIT, SAMPLES, FAR = 0.05, 20000, 10
FAMILIES = ("isomorphic", "monotonic", "acc")
NETWORKS = """(vnnlib-version <2.0>)
(declare-network f (declare-input X_f real [5]) (declare-output Y_f real [5]))
(declare-network g ({} f) (declare-input X_g real [5]) (declare-output Y_g real [5]))
"""
CRUISE = """(vnnlib-version <2.0>)
(declare-network f (declare-input X real [1,2]) (declare-output Y real [1,1]))
(assert (and (>= X[0,0] {}) (<= X[0,0] {})))
(assert (and (>= X[0,1] {}) (<= X[0,1] {})))
(assert (and (> X[0,0] 0.0) (>= (* X[0,0] 200.0) (* X[0,1] X[0,1]))))
(assert (or (or (< Y[0,0] -100.001) (> Y[0,0] 100.001))
  (and (< Y[0,0] 100.0)
    (or (!= Y[0,0] 0.0) (<= (* (+ X[0,0] (* X[0,1] 0.1)) 200.0) (* X[0,1] X[0,1])))
    (or (>= Y[0,0] 100.0) (< Y[0,0] -100.0) (== Y[0,0] 0.0)
      (<= (* 200.0 (+ X[0,0] (* X[0,1] 0.1) (* Y[0,0] 0.005)))
        (* (+ X[0,1] (* Y[0,0] 0.1)) (+ X[0,1] (* Y[0,0] 0.1))))
      (and
        (or (<= Y[0,0] 0.0) (and (<= (- X[0,1]) (* 0.1 Y[0,0])) (>= (- X[0,1]) 0.0)))
        (or (>= Y[0,0] 0.0) (and (>= (- X[0,1]) (* 0.1 Y[0,0])) (<= (- X[0,1]) 0.0)))
        (or (<= Y[0,0] 0.0) (<= (* (* X[0,0] 2.0) Y[0,0]) (* X[0,1] X[0,1])))
        (or (>= Y[0,0] 0.0) (>= (* (* X[0,0] 2.0) Y[0,0]) (* X[0,1] X[0,1])))))))
"""


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    """``[P, 5]``, in float64."""
    return Layers(onnx.load(path)).run(x)[-1]


def bounds(low: np.ndarray, up: np.ndarray) -> str:
    return "".join(
        f"(assert (and (>= X_f[{i}] {a:.9f}) (<= X_f[{i}] {b:.9f})))\n"
        for i, (a, b) in enumerate(zip(low, up, strict=True))
    )


def ties(inputs: range) -> str:
    return "".join(f"(assert (== X_f[{i}] X_g[{i}]))\n" for i in inputs)


def isomorphic(nets: Path, rng: random.Random, number: int) -> tuple[dict[str, Path], str]:
    x = np.array(LOW) + np.random.default_rng(0).random((SAMPLES, 5)) * np.subtract(UP, LOW)
    while True:
        name = f"ACASXU_run2a_{rng.randint(1, 5)}_{rng.randint(1, 9)}_batch_2000"
        pruned = f"{name}_pruned{rng.choice([5, 10, 30])}"
        files = {"f": nets / f"nets/{name}.onnx", "g": nets / f"nets_pruned/{pruned}.onnx"}
        y, v = (outputs(path, x) for path in files.values())
        largest = float(np.abs(y - v).max())
        if (largest > LIMIT) == (number % FAR == 0):
            break
    either = " ".join(
        f"(> Y_g[{k}] (+ Y_f[{k}] {LIMIT})) (< Y_g[{k}] (- Y_f[{k}] {LIMIT}))" for k in range(5)
    )
    text = NETWORKS.format("isomorphic-to") + bounds(np.array(LOW), np.array(UP)) + ties(range(5))
    return files, f"; largest sampled {largest:.6f}\n{text}(assert (or {either}))\n"


def monotonic(nets: Path, rng: random.Random, number: int) -> tuple[dict[str, Path], str]:
    low = np.array([-0.16247807, -0.25, 0.25, 0.227272727, 0.25])
    up = np.array([0.667245963, 0.0, 0.5, 0.227272727, 0.25])
    samples = np.random.default_rng(0)
    while True:
        name = f"ACASXU_run2a_{rng.randint(1, 5)}_{rng.randint(1, 9)}_batch_2000"
        path, a, b = nets / f"nets/{name}.onnx", low.copy(), up.copy()
        if number % 2:
            start = np.array([rng.random() for _ in range(5)])
            a = low + 0.75 * start * (up - low)
            b = a + 0.25 * (up - low)
        x = a + samples.random((SAMPLES // 4, 5)) * (b - a)
        nearer = x.copy()
        nearer[:, 0] = a[0] + samples.random(len(x)) * (x[:, 0] - a[0])
        gap = outputs(path, nearer) - outputs(path, x)
        asked = [(3, "<")]
        if number % 2:
            asked = [(k, op) for k in range(5) for op, sign in (("<", 1), (">", -1))
                     if (sign * gap[:, k] < 0).all()]  # fmt: skip
        if asked:
            k, op = rng.choice(asked)
            break
    text = NETWORKS.format("equal-to") + bounds(a, b) + ties(range(1, 5))
    text += f"(assert (and (>= X_f[0] X_g[0]) (>= X_g[0] {a[0]:.9f})))\n"
    return {"f": path, "g": path}, f"{text}(assert ({op} Y_f[{k}] Y_g[{k}]))\n"


def make(options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    boxes = [(20.0 * i, 20.0 * i + 20, 40.0 * j - 200, 40.0 * j - 160)
             for i in range(5) for j in range(10)]  # fmt: skip
    drawn = rng.sample(boxes, options.count)
    rows = []
    for family in FAMILIES:
        (options.out / family).mkdir(parents=True, exist_ok=True)
        for number in range(options.count):
            files, text = {"f": options.nets / "acc.onnx"}, CRUISE.format(*drawn[number])
            if family == "isomorphic":
                files, text = isomorphic(options.nets, rng, number)
            elif family == "monotonic":
                files, text = monotonic(options.nets, rng, number)
            path = options.out / family / f"{number}.vnnlib"
            path.write_text(text)
            named = {name: str(file.resolve()) for name, file in files.items()}
            rows.append(
                {
                    "family": family,
                    "number": number,
                    "networks": named,
                    "property": str(path.resolve()),
                }
            )
    (options.out / "instances.json").write_text(json.dumps(rows, indent=1))


def one(options: argparse.Namespace) -> None:
    """Decide the instance given as JSON; prints its line of the journal."""
    import bitcrown

    row = json.loads(options.instance)
    files = row["networks"] if len(row["networks"]) > 1 else row["networks"]["f"]
    verdict = bitcrown.verify(bitcrown.load(files, row["property"]), cpu_seconds=options.seconds)
    found = {
        "family": row["family"],
        "number": row["number"],
        "network": " ".join(dict.fromkeys(Path(f).stem for f in row["networks"].values())),
        "verdict": verdict.status.value,
        "by": verdict.decided_by,
        "cpu": round(time.process_time(), 1),
        "pairs": verdict.counters.get("pairs", ""),
        "boxes": sum(verdict.counters.get(f"{w}_bounded", 0) for w in ("boxes", "directions")),
        "left": verdict.counters.get("boxes_left", 0),
    }
    print(json.dumps(found))


def run(options: argparse.Namespace) -> None:
    rows = json.loads((options.out / "instances.json").read_text())
    random.Random(options.seed).shuffle(rows)
    lines = options.journal.read_text().splitlines() if options.journal.exists() else []
    found = [json.loads(line) for line in lines]
    done, spent = {(row["family"], row["number"]) for row in found}, 0.0
    for row in rows:
        if (row["family"], row["number"]) in done or spent > options.total:
            continue
        words = [
            sys.executable,
            __file__,
            "one",
            json.dumps(row),
            "--seconds",
            str(options.seconds),
        ]
        answer = subprocess.run(words, capture_output=True, text=True)
        line = answer.stdout.strip().splitlines()[-1:] or [
            json.dumps({**row, "verdict": "error", "by": answer.stderr[-300:]})
        ]
        spent += json.loads(line[0]).get("cpu", 0.0)
        with options.journal.open("a") as file:
            file.write(line[0] + "\n")


def table(options: argparse.Namespace) -> None:
    journals = []
    for path in options.journals:
        rows = map(json.loads, path.read_text().splitlines())
        journals.append({(row["family"], row["number"]): row for row in rows})
    print("| family | " + " | ".join(path.stem for path in options.journals) + " |")
    print("|---|" + "---|" * len(journals))
    for family in FAMILIES:
        cells = []
        for journal in journals:
            words = [row["verdict"] for row in journal.values() if row["family"] == family]
            counts = {word: words.count(word) for word in sorted(set(words))}
            cells.append(f"{len(words)}: " + ", ".join(f"{n} {word}" for word, n in counts.items()))
        print(f"| {family} | " + " | ".join(cells) + " |")
    print("\n| instance | network | " + " | ".join(path.stem for path in options.journals) + " |")
    print("|---|---|" + "---|" * len(journals))
    for key in sorted({key for journal in journals for key in journal}):
        cells, network = [], ""
        for journal in journals:
            row = journal.get(key)
            network = row.get("network", network) if row else network
            cells.append(
                f"{row['verdict']} {row.get('cpu', 0)} s ({row.get('by') or row.get('left', 0)})"
                + (f", {row['boxes']} boxes {row['pairs']}".rstrip() if row.get("boxes") else "")
                if row
                else ""
            )
        print(f"| {key[0]} {key[1]} | {network} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("nets", type=Path)
    maker.add_argument("out", type=Path)
    maker.add_argument("--seed", type=int, default=1)
    maker.add_argument("--count", type=int, default=20)
    runner = commands.add_parser("run")
    runner.add_argument("out", type=Path)
    runner.add_argument("journal", type=Path)
    runner.add_argument("--seconds", type=float, default=60.0)
    runner.add_argument("--seed", type=int, default=0)
    runner.add_argument("--total", type=float, default=1800.0)
    single = commands.add_parser("one")
    single.add_argument("instance")
    single.add_argument("--seconds", type=float, default=60.0)
    commands.add_parser("table").add_argument("journals", type=Path, nargs="+")
    options = parser.parse_args()
    {"make": make, "run": run, "one": one, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
