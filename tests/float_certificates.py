"""Small float networks with certificates, exact evaluation, and ways to damage a certificate."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bitcrown.api import load
from bitcrown.budget import Budget
from bitcrown.certificates.writer import certificate_of
from bitcrown.check.certificates.floats.checker import ProofSubject, subject_of
from bitcrown.check.certificates.floats.format import decoded
from bitcrown.check.certificates.floats.nodes import (
    CombineNode,
    ConvNode,
    DenseNode,
    FloatNetwork,
    GatherNode,
    ReluNode,
)
from tests.random_networks import box_property, dense_graph, save_onnx

SECONDS = 60.0
DIGITS = "0123456789abcdef"


def dense_subject(
    folder: Path, seed: int, sizes: list[int], radius: float, formula: str
) -> ProofSubject:
    """A random ReLU network over a box around 0 and one assertion about its outputs."""
    onnx = folder / f"net{seed}.onnx"
    save_onnx(dense_graph(seed, sizes), onnx)
    box = np.full(sizes[0], radius)
    prop = folder / f"prop{seed}.vnnlib"
    prop.write_text(box_property(-box, box, sizes[-1], formula))
    return subject_of(load(onnx, prop))


def conv_subject(folder: Path, seed: int, radius: float, formula: str) -> ProofSubject:
    """The same about a network of two convolutions over planes of 5 x 5."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (3, 1, 3, 3), "b1": (3,), "w2": (4, 3, 3, 3), "b2": (4,), "w3": (16, 1)}
    weights = {
        name: (0.5 * random.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path, prop = folder / f"conv{seed}.onnx", folder / f"conv{seed}.vnnlib"
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    box = np.full(25, radius)
    prop.write_text(box_property(-box, box, 1, formula))
    return subject_of(load(path, prop))


def written(subject: ProofSubject) -> bytes:
    """The certificate of a subject that has one."""
    data = certificate_of(subject, Budget.of_seconds(SECONDS, 1 << 32))
    assert isinstance(data, bytes), data
    return data


def exact_output(network: FloatNetwork, x: list[Fraction]) -> list[Fraction]:
    """Outputs of a dense network at ``x`` in rational numbers."""
    values: list[list[Fraction]] = [x]
    for node in network.nodes[1:]:
        source = values[node.sources[0]]
        if isinstance(node, ReluNode):
            values.append([max(value, Fraction(0)) for value in source])
        elif isinstance(node, GatherNode):
            values.append([source[i] if i >= 0 else Fraction(0) for i in node.index.tolist()])
        elif isinstance(node, CombineNode):
            total = [Fraction(b) for b in node.bias.tolist()]
            for place, factor in zip(node.sources, node.factors, strict=True):
                factors = np.broadcast_to(factor, node.size).tolist()
                total = [
                    t + Fraction(f) * v
                    for t, f, v in zip(total, factors, values[place], strict=True)
                ]
            values.append(total)
        else:
            assert isinstance(node, DenseNode | ConvNode)
            matrix = node.forward([np.eye(len(source))]).T  # one product an entry: exact
            rows = zip(matrix.tolist(), node.bias.tolist(), strict=True)
            values.append(
                [
                    sum((Fraction(w) * v for w, v in zip(row, source, strict=True)), Fraction(b))
                    for row, b in rows
                ]
            )
    return values[network.output]


def places_of(content: Any, kind: type | tuple[type, ...]) -> list[tuple[Any, Any]]:
    """(container, key) of every value of type ``kind`` inside."""
    found: list[tuple[Any, Any]] = []
    pending = [content]
    while pending:
        item = pending.pop()
        pairs = item.items() if isinstance(item, dict) else enumerate(item)
        for key, value in pairs:
            if isinstance(value, dict | list):
                pending.append(value)
            if type(value) is kind or (isinstance(kind, tuple) and type(value) in kind):
                found.append((item, key))
    return found


def _change_array(random: np.random.Generator, content: dict[str, Any]) -> None:
    """One entry of one array becomes another number, often one that its place allows."""
    arrays = [item for item in content["arrays"] if item["hex"]]
    if not arrays:
        return
    item = arrays[int(random.integers(len(arrays)))]
    values = np.frombuffer(bytes.fromhex(item["hex"]), ">f8").copy()
    place = int(random.integers(len(values)))
    old = float(values[place])
    options = [
        0.0,
        1.0,
        1.0 - old,
        old * 1.0001,
        old + 0.01,
        2 * old,
        -old,
        1e6,
        np.nan,
        np.inf,
        float(random.uniform()),
    ]
    values[place] = options[int(random.integers(len(options)))]
    if random.random() < 0.2:
        random.shuffle(values)
    item["hex"] = values.tobytes().hex()


def _change_integer(random: np.random.Generator, content: dict[str, Any]) -> None:
    found = places_of({key: content[key] for key in ("parts", "roots", "arrays")}, int)
    holder, key = found[int(random.integers(len(found)))]
    options = [
        -1,
        0,
        1,
        2,
        holder[key] + 1,
        holder[key] - 1,
        True,
        float(holder[key]),
        str(holder[key]),
        None,
        10**30,
    ]
    holder[key] = options[int(random.integers(len(options)))]


def _change_list(random: np.random.Generator, content: dict[str, Any]) -> None:
    found = [
        (holder, key)
        for holder, key in places_of({"p": content["parts"], "r": content["roots"]}, list)
        if holder[key]
    ]
    if not found:
        return
    holder, key = found[int(random.integers(len(found)))]
    value = holder[key]
    place = int(random.integers(len(value)))
    kind = int(random.integers(4))
    if kind == 0:
        del value[place]
    elif kind == 1:
        value.append(copy.deepcopy(value[place]))
    elif kind == 2:
        random.shuffle(value)
    else:
        holder[key] = value[: len(value) // 2]


def _change_key(random: np.random.Generator, content: dict[str, Any]) -> None:
    found = places_of(
        {"p": content["parts"], "r": content["roots"], "a": content["arrays"]},
        (dict, int, str, list),
    )
    found = [(holder, key) for holder, key in found if isinstance(holder, dict)]
    holder, key = found[int(random.integers(len(found)))]
    if random.random() < 0.5:
        del holder[key]
    else:
        holder[key] = [{}, [], "inputs", "neurons", 0, None][int(random.integers(6))]


def _shown(content: dict[str, Any]) -> list[str]:
    """Text that differs wherever contents do (``1`` and ``True`` are equal), without copies of long
    arrays."""
    rest = {name: value for name, value in content.items() if name != "arrays"}
    arrays = content.get("arrays")
    if not isinstance(arrays, list) or not all(isinstance(item, dict) for item in arrays):
        return [repr(content)]
    hexes = [str(item.get("hex")) for item in arrays]
    return [
        repr(rest),
        *hexes,
        *(repr({key: value for key, value in item.items() if key != "hex"}) for item in arrays),
    ]


def mutated(random: np.random.Generator, data: bytes) -> dict[str, Any]:
    """The content of a certificate with one to three changes that make a difference to it."""
    original, content = decoded(data), decoded(data)
    while _shown(content) == _shown(original):
        for _ in range(int(random.integers(1, 4))):
            change = CHANGES[int(random.choice(len(CHANGES), p=[0.5, 0.3, 0.1, 0.1]))]
            try:
                change(random, content)
            except (
                KeyError,
                IndexError,
                TypeError,
                ValueError,
            ):  # an earlier change has left nothing to change here
                continue
    return content


CHANGES = [_change_array, _change_integer, _change_list, _change_key]
