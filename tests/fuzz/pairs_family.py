"""Two related networks: is a difference of theirs excluded that a point attains?

The second network is the first one, or the first one moved, rounded to sixteen bits, without some
neurons, with its neurons in another order, or none of these. Inputs are tied, ordered, pinned or
free, coordinate by coordinate. What is asked compares outputs: one difference, all of them in both
directions, its square, a product, or the difference over that of an input: is it ever above a rate,
with an equality where the inputs meet? The greatest value that samples and a climb among them find,
in float64 and without bitcrown, is the threshold, moved down by a share between 1e-9 and 1e-1, so
that every instance has a violation and ``unsat`` is false; in a few it is moved up, where only a
crash counts. Most have attacks switched off, so that only proofs speak.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.float_family import only_proofs, place_of
from tests.fuzz.mixed_family import decimal

SECONDS = (0.15, 0.15, 0.3, 0.3, 1.0)
CPU_SECONDS = 20.0
SAMPLES, CLIMBERS, CLIMBS = 600, 40, 30
ACTS = ("Relu",) * 6 + ("Sigmoid", "Tanh", "LeakyRelu", "Softplus", "Elu", "Clip")
Array = np.ndarray[Any, Any]


class Layer(NamedTuple):
    """``weight [out, in]`` or ``[out, in, 1, 2]`` (a convolution with one column of zeros before
    the first), ``bias [out]``, the function behind it (empty behind the last), and whether its
    operand is added to its value."""

    weight: Array
    bias: Array
    act: str
    is_residual: bool


def random_layers(rng: np.random.Generator, n: int, m: int) -> list[Layer]:
    widths = [n, *(int(rng.integers(2, 11)) for _ in range(int(rng.integers(1, 4)))), m]
    act, layers = str(rng.choice(ACTS)), []
    scale = 10 ** rng.uniform(-0.5, 0.5)
    is_conv = rng.random() < 0.15
    for k, (before, out) in enumerate(zip(widths, widths[1:], strict=False)):
        is_last = k == len(widths) - 2
        shape: tuple[int, ...] = (out, before)
        if is_conv and not is_last:
            shape = (out, 1 if k == 0 else before, 1, 2)
        elif is_conv:
            shape = (out, before * n)
        weight = rng.normal(size=shape) * scale / np.sqrt(before)
        if rng.random() < 0.2:
            act = str(rng.choice(ACTS))
        adds = not is_last and not is_conv and before == out and rng.random() < 0.5
        layers.append(Layer(weight, rng.normal(size=out) * 0.3, "" if is_last else act, adds))
    return [_single(layer) for layer in layers]


def _single(layer: Layer) -> Layer:
    return layer._replace(
        weight=layer.weight.astype(np.float32), bias=layer.bias.astype(np.float32)
    )


def related(rng: np.random.Generator, layers: list[Layer]) -> tuple[list[Layer], list[str]]:
    """Another network of the same structure, and how it came about."""
    count = int(rng.choice([0, 1, 1, 1, 2]))
    kinds = [str(rng.choice(["moved", "rounded", "pruned", "permuted"])) for _ in range(count)]
    if rng.random() < 0.1:
        kinds = ["other"]
    for kind in kinds:
        layers = {
            "moved": _moved,
            "rounded": _rounded,
            "pruned": _pruned,
            "permuted": _permuted,
            "other": lambda rng, layers: _moved(rng, layers, 1.0),
        }[kind](rng, layers)
    return [_single(layer) for layer in layers], kinds


def _moved(rng: np.random.Generator, layers: list[Layer], size: float = 0.0) -> list[Layer]:
    size = size or 10 ** rng.uniform(-7, -1)
    return [
        layer._replace(
            weight=layer.weight + size * rng.normal(size=layer.weight.shape),
            bias=layer.bias + size * rng.normal(size=layer.bias.shape),
        )
        for layer in layers
    ]


def _rounded(rng: np.random.Generator, layers: list[Layer]) -> list[Layer]:
    return [
        layer._replace(weight=layer.weight.astype(np.float16), bias=layer.bias.astype(np.float16))
        for layer in layers
    ]


def _pruned(rng: np.random.Generator, layers: list[Layer]) -> list[Layer]:
    found = []
    for layer in layers:
        weight, bias = layer.weight.copy(), layer.bias.copy()
        if layer.act:
            gone = rng.random(len(bias)) < 0.2
            weight[gone], bias[gone] = 0.0, float(rng.choice([0.0, 1.0, -1.0]))
        else:
            weight = np.where(rng.random(weight.shape) < 0.05, 0.0, weight)
        found.append(layer._replace(weight=weight, bias=bias))
    return found


def _permuted(rng: np.random.Generator, layers: list[Layer]) -> list[Layer]:
    found = list(layers)
    for k, (layer, reader) in enumerate(zip(layers, layers[1:], strict=False)):
        if layer.is_residual or reader.is_residual or layer.weight.ndim != reader.weight.ndim:
            continue
        order = rng.permutation(len(layer.bias))
        layer = found[k]
        found[k] = layer._replace(weight=layer.weight[order], bias=layer.bias[order])
        found[k + 1] = found[k + 1]._replace(weight=found[k + 1].weight[:, order])
    return found


# -- the same network three times: as numbers, as a file, as a question ----------------------------


def outputs(layers: list[Layer], x: torch.Tensor) -> torch.Tensor:
    """``[P, m]`` at points ``[P, n]``, in float64."""
    act = {
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "LeakyRelu": lambda v: torch.where(v > 0, v, np.float64(np.float32(0.1)) * v),
        "Softplus": torch.nn.functional.softplus,
        "Elu": torch.nn.functional.elu,
        "Clip": lambda v: v.clamp(-0.5, 0.75),
        "": lambda v: v,
    }
    if layers[0].weight.ndim == 4:
        x = x.reshape(len(x), 1, 1, -1)
    for layer in layers:
        weight, bias = (torch.tensor(part.astype(np.float64)) for part in layer[:2])
        if weight.dim() == 4:
            value = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 0)), weight, bias)
        else:
            x = x.flatten(1)
            value = x @ weight.T + bias
        x = act[layer.act](value) + (x if layer.is_residual else 0.0)
    return x


def file_of(layers: list[Layer], n: int) -> Any:
    """The ONNX model, of float32."""
    nodes, weights, x = [], [], "x"
    is_conv = layers[0].weight.ndim == 4
    for k, layer in enumerate(layers):
        before = x
        weights += [(f"w{k}", layer.weight), (f"b{k}", layer.bias)]
        if layer.weight.ndim == 4:
            nodes.append(helper.make_node("Conv", [x, f"w{k}", f"b{k}"], [f"z{k}"],
                                          kernel_shape=[1, 2], pads=[0, 1, 0, 0]))  # fmt: skip
        else:
            if is_conv:
                nodes.append(helper.make_node("Flatten", [x], ["flat"], axis=1))
                x = "flat"
            nodes.append(helper.make_node("Gemm", [x, f"w{k}", f"b{k}"], [f"z{k}"], transB=1))
        x = f"z{k}"
        if layer.act:
            ends = [] if layer.act != "Clip" else ["low", "up"]
            more = {"alpha": 0.1} if layer.act == "LeakyRelu" else {}
            nodes.append(helper.make_node(layer.act, [x, *ends], [f"a{k}"], **more))
            x = f"a{k}"
        if layer.is_residual:
            nodes.append(helper.make_node("Add", [x, before], [f"r{k}"]))
            x = f"r{k}"
    weights += [("low", np.float32(-0.5)), ("up", np.float32(0.75))]
    nodes[-1].output[0] = "y"
    shape = [1, 1, 1, n] if is_conv else [1, n]
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, len(layers[-1].bias)])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Question(NamedTuple):
    """``relation [n]``: ``=`` tied, ``<`` ordered upward, ``>`` downward, empty free; ``what`` is
    asked of output ``k``, a rate in the input ``i``."""

    low: Array
    up: Array
    relation: list[str]
    what: str
    k: int
    i: int

    def points(self, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two points ``[P, n]`` in the box that satisfy the relations."""
        low, up = torch.tensor(self.low), torch.tensor(self.up)
        x, z = torch.clamp(x, low, up), torch.clamp(z, low, up)
        small, large = torch.minimum(x, z), torch.maximum(x, z)
        is_tied, is_up, is_down = (
            torch.tensor([word == sign for word in self.relation]) for sign in "=<>"
        )
        first = torch.where(is_up, small, torch.where(is_down, large, x))
        return first, torch.where(
            is_tied, x, torch.where(is_up, large, torch.where(is_down, small, z))
        )

    def value(
        self, y: torch.Tensor, v: torch.Tensor, x: torch.Tensor, z: torch.Tensor
    ) -> torch.Tensor:
        """``[P]``: what is compared with the threshold, at the points ``x`` and ``z``."""
        gap = (y - v)[:, self.k]
        apart = (x - z)[:, self.i].abs()  # nearer pairs would say how differences are rounded
        is_far = apart > 1e-3 * float(self.up[self.i] - self.low[self.i])
        return {
            "difference": gap,
            "any": (y - v).abs().amax(1),
            "square": gap * gap,
            "rate": torch.where(is_far, gap / apart, -torch.inf),
            "product": y[:, self.k] * v[:, 0],
        }[self.what]

    def text(self, n: int, m: int, is_conv: bool, has_one: bool, limit: Fraction) -> str:
        at = "0,0,0," if is_conv else "0,"
        lines = ["(vnnlib-version <2.0>)"]
        for name in "fg":
            more = "" if name == "f" else f"({'equal-to' if has_one else 'isomorphic-to'} f)"
            shape = f"[1,1,1,{n}]" if is_conv else f"[1,{n}]"
            lines.append(f"(declare-network {name} {more} (declare-input X{name} real {shape})"
                         f"(declare-output Y{name} real [1,{m}]))")  # fmt: skip
        for i, word in enumerate(self.relation):
            ends = [decimal(Fraction(float(end[i]))) for end in (self.low, self.up)]
            for name in "fg":
                lines.append(f"(assert (and (>= X{name}[{at}{i}] {ends[0]})"
                             f" (<= X{name}[{at}{i}] {ends[1]})))")  # fmt: skip
            if word:
                op = {"=": "==", "<": "<=", ">": ">="}[word]
                lines.append(f"(assert ({op} Xf[{at}{i}] Xg[{at}{i}]))")
        t = decimal(limit)
        gaps = [f"(- Yf[0,{k}] Yg[0,{k}])" for k in range(m)]
        sides = ("Xf", "Xg") if self.relation[self.i] == ">" else ("Xg", "Xf")
        apart = " ".join(f"{side}[{at}{self.i}]" for side in sides)
        found = {
            "rate": f"(> {gaps[self.k]} (* {t} (- {apart})))",
            "difference": f"(>= {gaps[self.k]} {t})",
            "any": "(or " + " ".join(f"(>= {g} {t}) (<= {g} (- {t}))" for g in gaps) + ")",
            "square": f"(>= (* {gaps[self.k]} {gaps[self.k]}) {t})",
            "product": f"(>= (* Yf[0,{self.k}] Yg[0,0]) {t})",
        }[self.what]
        return "\n".join([*lines, f"(assert {found})"])


def greatest(question: Question, f: list[Layer], g: list[Layer], rng: np.random.Generator) -> float:
    """The greatest value among samples and climbs from the best of them."""
    n = len(question.low)

    def at(x: Array, z: Array) -> Array:
        first, second = question.points(torch.tensor(x), torch.tensor(z))
        found: Array = question.value(outputs(f, first), outputs(g, second), first, second).numpy()
        return found

    x, z = rng.uniform(question.low, question.up, (2, SAMPLES, n))
    x[: SAMPLES // 3] = np.where(rng.random((SAMPLES // 3, n)) < 0.5, question.low, question.up)
    value = at(x, z)
    best = np.argsort(value)[-CLIMBERS:]
    x, z, value = x[best], z[best], value[best]
    for step in range(CLIMBS):
        size = 0.3 * 0.8**step * (question.up - question.low)
        new_x, new_z = (part + size * rng.normal(size=part.shape) for part in (x, z))
        found = at(new_x, new_z)
        is_better = found > value
        x, z = np.where(is_better[:, None], new_x, x), np.where(is_better[:, None], new_z, z)
        value = np.maximum(value, found)
    return float(value.max())


def instance(seed: int, number: int) -> tuple[Any, Any, str, bool, bool, dict[str, Any]] | None:
    """Two models (the second None where they are one), the property, whether it is violated, and
    whether attacks stay on, facts; None where nothing is finite."""
    rng = np.random.default_rng([seed, number])
    n, m = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    f = random_layers(rng, n, m)
    g, kinds = related(rng, f)
    has_one = not kinds
    centre, radius = rng.normal(size=n), 10 ** rng.uniform(-2, 0.3, n)
    radius *= rng.random(n) < 0.9
    low, up = ((centre + side * radius).astype(np.float32).astype(np.float64) for side in (-1, 1))
    weights = [0.7, 0.1, 0.1, 0.1] if rng.random() < 0.6 else [0.4, 0.25, 0.25, 0.1]
    relation = [str(rng.choice(["=", "<", ">", ""], p=weights)) for _ in range(n)]
    kinds_of = ["difference", "any", "square", "product", "rate"]
    what = str(rng.choice(kinds_of, p=[0.35, 0.2, 0.05, 0.1, 0.3]))
    i = int(rng.integers(n))
    if what == "rate":
        g, kinds, has_one = (f, [], True) if rng.random() < 0.8 else (g, kinds, has_one)
        relation = [word if rng.random() < 0.2 else "=" for word in relation]
        relation[i] = str(rng.choice(["<", ">"]))
    question = Question(low, up, relation, what, int(rng.integers(m)), i)
    most = greatest(question, f, g, rng)
    if not np.isfinite(most):
        return None
    is_violated = bool(rng.random() < 0.85)
    # a difference of equal numbers is 0, up to rounding of numbers of size 1
    share = (abs(most) + 1e-4) * 10 ** rng.uniform(-6 if what == "rate" else -9, -1) + 1e-12
    if what == "rate":
        share += 1e-6
        if rng.random() < 0.5 and is_violated == (most - share > 0):
            share = most if is_violated else -most  # does it rise?
    limit = Fraction(most - share if is_violated else most + share)
    if what in ("any", "square") and limit <= 0:
        return None
    if what == "rate":  # what a row of float64 holds
        limit = Fraction(math.floor(limit * 2**20), 2**20)
    text = question.text(n, m, f[0].weight.ndim == 4, has_one, limit)
    facts = {"kinds": kinds, "relation": "".join(word or "." for word in relation), "what": what,
             "acts": [layer.act for layer in f], "limit": float(limit)}  # fmt: skip
    models = file_of(f, n), None if has_one else file_of(g, n)
    return *models, text, is_violated, bool(rng.random() < 0.2), facts


@contextlib.contextmanager
def never_refuted() -> Iterator[None]:
    """The search over derivatives goes on where it has found a point that violates."""
    from bitcrown.search.directions import DirectionTurns

    kept = DirectionTurns.tried
    DirectionTurns.tried = lambda *args: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        DirectionTurns.tried = kept  # type: ignore[method-assign]


def trial(seed: int, number: int) -> dict[str, Any]:
    made = instance(seed, number)
    if made is None:
        return {"kind": "unfit"}
    f, g, text, is_violated, has_attacks, facts = made
    import bitcrown
    from bitcrown.errors import BitcrownError

    seconds = float(np.random.default_rng([seed, number, 1]).choice(SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            "f": Path(folder, "f.onnx"),
            "g": Path(folder, "f.onnx" if g is None else "g.onnx"),
        }
        onnx.save(f, paths["f"])
        if g is not None:
            onnx.save(g, paths["g"])
        Path(folder, "p.vnnlib").write_text(text)
        off = (contextlib.nullcontext(),) * 2 if has_attacks else (only_proofs(), never_refuted())
        try:
            with off[0], off[1]:
                problem = bitcrown.load(paths, Path(folder, "p.vnnlib"))
                verdict = bitcrown.verify(problem, cpu_seconds=seconds)
        except BitcrownError as error:
            return {"kind": "refused", "reason": str(error)[:300], **facts}
        except Exception as error:  # noqa: BLE001 (any other class is a finding)
            return {"kind": "traceback", "signature": place_of(error), "says": str(error), **facts}
    how = str(verdict.counters.get("pairs", "one"))
    if verdict.status == "unsat" and is_violated:
        return {"kind": "false unsat", "signature": f"{verdict.decided_by}, {how}", **facts}
    return {"kind": f"{verdict.status.value} ({how})", "reason": verdict.detail[:200]}


def explained(seed: int, number: int, result: dict[str, Any], folder: Path) -> str:
    """The instance as files, which are small already; a line that says what it is."""
    made = instance(seed, number)
    assert made is not None
    for name, model in zip("fg", made[:2], strict=True):
        if model is not None:
            onnx.save(model, folder / f"{name}.onnx")
    (folder / "prop.vnnlib").write_text(made[2])
    (folder / "result.json").write_text(json.dumps(result, default=str))
    return f"{result['kind']}: {result.get('signature')}; {result['kinds']} {result['relation']}"
