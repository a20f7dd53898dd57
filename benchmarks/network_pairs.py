"""Instances about two networks, made from the ACAS Xu networks and a seed.

    python benchmarks/network_pairs.py FOLDER_OF_ACASXU_NETWORKS OUT [--seed 1] [--count 20]

``isomorphic``: a network and itself without the hidden neurons (5 to 30 %) that are least active on
all inputs; violated if some output differs by more than 0.05. ``rounded``: the same with weights
rounded to sixteen bits, and a difference of 0.001. ``monotonic``: one network at two inputs that
differ in one coordinate, ``x <= x'``; violated if an output falls (or rises). Each folder gets its
networks, properties and ``instances.csv``; the largest difference among 4,000 samples is written
into the property.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

BOXES = (
    ((0.6, -0.5, -0.5, 0.45, -0.5), (0.68, 0.5, 0.5, 0.5, -0.45)),
    ((-0.303, -0.009, 0.493, 0.3, 0.3), (-0.298, 0.009, 0.5, 0.5, 0.5)),
    ((-0.303, -0.009, 0.0, 0.318, 0.083), (-0.298, 0.009, 0.0, 0.5, 0.5)),
    ((-0.324, 0.031, -0.5, -0.5, -0.5), (-0.321, 0.063, -0.49, -0.22, -0.2)),
)
"""Boxes of the properties 1, 3, 4 and 5 of ACAS Xu, with rounded ends."""
SHARES = (0.3, 0.2, 0.1, 0.05)
LIMIT = 0.05
SAMPLES = 4000


class Layers:
    """Weights ``[out, in]`` and biases of a chain of MatMul, Add and Relu."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        values = {i.name: i for i in model.graph.initializer}
        self.weights, self.biases, self.turned = [], [], []
        for node in model.graph.node:
            known = [name for name in node.input if name in values]
            if node.op_type == "MatMul":
                self.weights.append(values[known[0]])
                self.turned.append(known[0] == node.input[1])
            elif node.op_type == "Add":
                self.biases.append(values[known[0]])

    def matrix(self, k: int) -> np.ndarray:
        value = numpy_helper.to_array(self.weights[k]).astype(np.float64)
        return value.T if self.turned[k] else value

    def put(self, k: int, value: np.ndarray) -> None:
        stored = (value.T if self.turned[k] else value).astype(np.float32)
        self.weights[k].CopyFrom(numpy_helper.from_array(stored, self.weights[k].name))

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Values behind every layer."""
        found = []
        for k, bias in enumerate(self.biases):
            x = x @ self.matrix(k).T + numpy_helper.to_array(bias).astype(np.float64)
            x = np.maximum(x, 0) if k + 1 < len(self.biases) else x
            found.append(x)
        return found


def pruned(path: Path, samples: np.ndarray, share: float) -> Layers:
    layers = Layers(onnx.load(path))
    for k, values in enumerate(layers.run(samples)[:-1]):
        weak = np.argsort(values.mean(axis=0))[: round(share * values.shape[1])]
        rows, columns = layers.matrix(k), layers.matrix(k + 1)
        rows[weak], columns[:, weak] = 0.0, 0.0
        layers.put(k, rows)
        layers.put(k + 1, columns)
    return layers


def close(path: Path, samples: np.ndarray, own: np.ndarray, rng: np.random.Generator) -> Layers:
    """Without as many neurons as leave sampled outputs within 0.05, if any share does."""
    everywhere = rng.random((SAMPLES, 5)) - 0.5
    for share in SHARES:
        found = pruned(path, everywhere, share)
        if np.abs(found.run(samples)[-1] - own).max() < LIMIT:
            break
    return found


def rounded(path: Path) -> Layers:
    layers = Layers(onnx.load(path))
    for k in range(len(layers.weights)):
        layers.put(k, layers.matrix(k).astype(np.float16).astype(np.float64))
    return layers


def declarations(
    shape: str, relation: str, low: np.ndarray, up: np.ndarray, free: int
) -> list[str]:
    """Both networks, the box of f, and ties of all inputs but ``free`` (-1: none is free)."""
    at = "0,0,0," if shape.count(",") == 3 else ""
    lines = ["(vnnlib-version <2.0>)"]
    for name, more in (("f", ""), ("g", f" ({relation} f)")):
        lines.append(
            f"(declare-network {name}{more} (declare-input X_{name} real {shape})"
            f" (declare-output Y_{name} real {OUTPUT[shape]}))"
        )
    for i, (least, most) in enumerate(zip(low, up, strict=True)):
        f, g = f"X_f[{at}{i}]", f"X_g[{at}{i}]"
        lines.append(f"(assert (and (>= {f} {least:.9f}) (<= {f} {most:.9f})))")
        lines.append(
            f"(assert (and (<= {f} {g}) (<= {g} {most:.9f})))"
            if i == free
            else f"(assert (== {f} {g}))"
        )
    return lines


OUTPUT = {"[5]": "[5]", "[1,1,1,5]": "[1,5]"}


def difference_property(shape: str, low: np.ndarray, up: np.ndarray, limit: float) -> list[str]:
    at = "0," if OUTPUT[shape] == "[1,5]" else ""
    parts = [
        f"(> Y_g[{at}{k}] (+ Y_f[{at}{k}] {limit})) (< Y_g[{at}{k}] (- Y_f[{at}{k}] {limit}))"
        for k in range(5)
    ]
    lines = declarations(shape, "isomorphic-to", low, up, -1)
    return [*lines, f"(assert (or {' '.join(parts)}))"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("networks", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--count", type=int, default=20)
    chosen = options.parse_args()
    rng = np.random.default_rng(chosen.seed)
    paths = sorted(chosen.networks.glob("*.onnx"))
    rows: dict[str, list[str]] = {"isomorphic": [], "rounded": [], "monotonic": []}
    for family in rows:
        (chosen.out / family).mkdir(parents=True, exist_ok=True)
        for number in range(chosen.count):
            path, box = paths[rng.integers(len(paths))], BOXES[rng.integers(len(BOXES))]
            low, up = (np.array(ends) for ends in box)
            samples = low + rng.random((SAMPLES, 5)) * (up - low)
            first = Layers(onnx.load(path))
            dims = first.model.graph.input[0].type.tensor_type.shape.dim
            shape = "[1,1,1,5]" if len(dims) > 1 else "[5]"
            other, own = path, first.run(samples)[-1]
            if family == "monotonic":
                free, k = int(rng.integers(5)), int(rng.integers(5))
                while up[free] == low[free]:
                    free = int(rng.integers(5))
                moved = samples.copy()
                moved[:, free] += rng.random(SAMPLES) * (up[free] - moved[:, free])
                at = f"0,{k}" if shape != "[5]" else f"{k}"
                sign = "<" if (first.run(moved)[-1] - own)[:, k].mean() < 0 else ">"
                lines = declarations(shape, "equal-to", low, up, free)
                lines.append(f"(assert ({sign} Y_f[{at}] Y_g[{at}]))")
                gap = first.run(moved)[-1][:, k] - own[:, k]
                gap = gap if sign == "<" else -gap
            else:
                second = rounded(path) if family == "rounded" else close(path, samples, own, rng)
                other = chosen.out / family / f"{number}.onnx"
                onnx.save(second.model, other)
                lines = difference_property(
                    shape, low, up, LIMIT if family == "isomorphic" else 0.001
                )
                gap = np.abs(second.run(samples)[-1] - own)
            lines.insert(0, f"; {path.stem}, largest sampled difference {gap.max():.6f}")
            name = f"{number}.vnnlib"
            (chosen.out / family / name).write_text("\n".join(lines) + "\n")
            pair = f"[('f', '{path.resolve()}'), ('g', '{other.resolve()}')]"
            rows[family].append(f'"{pair}",{name},60')
        (chosen.out / family / "instances.csv").write_text("\n".join(rows[family]) + "\n")


if __name__ == "__main__":
    main()
