"""The certificate's network against onnxruntime, bit for bit, on drawn inputs.

The certificate's digest is the seed, so the same certificate is always judged alike; inputs lie
anywhere in the range of the input, close to its ends, in its corners, and inside the property's
box. This is a second net and no proof: who writes a certificate can try many digests. Every integer
tensor of the file that the reading found in the network, and the output, has to lie between the two
ends that the network gives, which are one number where arithmetic is pinned down. QONNX, which
onnxruntime lacks, is written in standard operators first.
"""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.integers.affine import Integers
from bitcrown.check.certificates.integers.property import Claim, OutputValues
from bitcrown.check.certificates.quantized.chain import (
    BINARY32,
    ChainTensor,
    NumpyArray,
    values_of,
)
from bitcrown.check.certificates.quantized.file import Read
from bitcrown.check.certificates.quantized.quantizers import QONNX, QONNX_ROUNDINGS
from bitcrown.check.certificates.quantized.reading import integer_range
from bitcrown.check.certificates.quantized.runtime import refusals
from bitcrown.check.replay import open_session, run_session

_SAMPLES = 24


def require_agreement(read: Read, claim: Claim, seed: str, samples: int = _SAMPLES) -> None:
    """Raises ``Reject`` with the first tensor that differs."""
    model = without_qonnx(read.model)
    traced = _traced(read)
    present = {info.name for info in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in traced if name not in present
    )
    names = [info.name for info in model.graph.output]
    with refusals():
        opened = open_session(model.SerializeToString(), "it")
    entry = opened.get_inputs()[0].name
    for point in drawn_inputs(read, claim, seed, samples):
        feed = np.asarray(point, dtype=read.dtype).reshape(read.reading.shape)
        with refusals():
            found = dict(zip(names, run_session(opened, {entry: feed}, "it"), strict=True))
        integers = _integers(read, feed.reshape(-1))
        low, high = read.reading.net.enclosure(integers, integers)
        for name, tensor in traced.items():
            least, most = tensor.picked(low), tensor.picked(high)
            values = found[name].reshape(-1).astype(np.int64)
            inside = values.shape == least.shape and bool(
                ((least <= values) & (values <= most)).all()
            )
            need(inside, f"tensor {name!r} differs from onnxruntime on a drawn input")
        output = read.reading.net.output
        _require_output(read.outputs, found[names[0]], low[output], high[output])


def _require_output(
    outputs: list[OutputValues], found: NumpyArray, low: Integers, high: Integers
) -> None:
    values = [Fraction(v) for v in found.reshape(-1).astype(np.float64).tolist()]
    need(len(values) == len(outputs), "the file has another number of outputs than the network")
    for known, value, a, b in zip(outputs, values, low, high, strict=True):
        inside = known.of(a) <= value <= known.of(b)
        need(inside, "the output differs from onnxruntime on a drawn input")


def _traced(read: Read) -> dict[str, ChainTensor]:
    """Integer tensors of the file of 8 bits or more that are elements of nodes as they stand."""
    found = {}
    for name, tensors in read.reading.viewed.items():
        plain = next((t for t in tensors if not t.chain and not t.is_float), None)
        if plain is not None and name not in (info.name for info in read.model.graph.input):
            low, high = integer_range(plain.dtype)
            if high - low >= 255:
                found[name] = plain
    return found


def drawn_inputs(read: Read, claim: Claim, seed: str, samples: int) -> list[list[float]]:
    """[samples, N] inputs of the file."""
    rng = random.Random(seed)
    net, size = read.reading.net, read.reading.net.sizes[0]
    wide = _span(read) if read.dtype == BINARY32 else (net.low[0], net.high[0])
    points = [list(wide[0]), list(wide[1])]
    for k in range(samples - 2):
        shares = [rng.random() if k % 3 else float(rng.random() < 0.5) for _ in range(size)]
        if k % 2 and read.dtype != BINARY32:
            ends = claim.low, claim.high
            inner = [(max(a, c), min(b, d)) for a, b, c, d in zip(*wide, *ends, strict=True)]
            low, high = [min(a, b) for a, b in inner], [b for _, b in inner]
            low = [max(a, w) for a, w in zip(low, wide[0], strict=True)]
            high = [min(max(a, b), w) for a, b, w in zip(low, high, wide[1], strict=True)]
        else:
            low, high = list(wide[0]), list(wide[1])
        points.append([a + s * (b - a) for a, b, s in zip(low, high, shares, strict=True)])
    return (
        points if read.dtype == BINARY32 else [[float(round(v)) for v in point] for point in points]
    )


def _span(read: Read) -> tuple[list[float], list[float]]:
    """Real numbers around those that are not saturated: by doubling until nothing changes any
    more."""
    chain, size = read.reading.entry, read.reading.net.sizes[0]
    assert chain is not None
    index = np.arange(size)
    reach = np.full(size, np.finfo(np.float32).max, np.float32)
    ends = []
    for sign in (-1, 1):
        far = values_of(chain, (sign * reach)[:, None], index)[0][:, 0]
        best = reach.copy()
        for power in range(127, -40, -1):
            smaller = np.full(size, 2.0**power, np.float32)
            same = values_of(chain, (sign * smaller)[:, None], index)[0][:, 0] == far
            best = np.where(same & (smaller < best), smaller, best)
        ends.append((sign * best * 1.25).astype(np.float64).tolist())
    return ends[0], ends[1]


def _integers(read: Read, values: NumpyArray) -> Integers:
    if read.dtype != BINARY32:
        return [int(v) for v in values.tolist()]
    assert read.reading.entry is not None
    found = values_of(read.reading.entry, values[:, None], np.arange(len(values)))[0][:, 0]
    return [int(v) for v in found.tolist()]


def without_qonnx(model: Any) -> Any:
    """The same network without QONNX operators."""
    written = onnx.ModelProto()
    written.CopyFrom(model)
    if not any(node.domain in QONNX for node in model.graph.node):
        return written
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    del written.graph.node[:]
    for node in model.graph.node:
        written.graph.node.extend(_expanded(node, constants) if node.domain in QONNX else [node])
    opset = next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
    )
    old = opset < 11 and any(
        node.op_type in ("Clip", "Pad", "Resize", "TopK") for node in model.graph.node
    )
    need(not old, "operators of an old opset stand beside QONNX")
    del written.opset_import[:]
    written.opset_import.extend([helper.make_opsetid("", max(opset, 11))])
    return written


_SIZED = {
    "UP": "Ceil",
    "DOWN": "Floor",
    "ROUND_TO_ZERO": "Floor",
    "HALF_UP": "Floor",
    "HALF_DOWN": "Ceil",
}
"""Roundings that act on the size of a number; the two halves move it first."""
_PLAIN = {"ROUND": "Round", "HALF_EVEN": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}


def _expanded(node: Any, constants: dict[str, NumpyArray]) -> list[Any]:
    """One Quant or BipolarQuant in standard operators."""
    made: list[Any] = []
    name = node.output[0]

    def constant(value: Any, part: str) -> str:
        tensor = numpy_helper.from_array(np.asarray(value, dtype=np.float32), f"{name}/{part}")
        made.append(helper.make_node("Constant", [], [f"{name}/{part}"], value=tensor))
        return f"{name}/{part}"

    def step(op: str, *inputs: str, to: str = "", **attrs: Any) -> str:
        out = to or f"{name}/{len(made)}"
        made.append(helper.make_node(op, list(inputs), [out], **attrs))
        return out

    if node.op_type == "BipolarQuant":
        less = step("Less", node.input[0], constant(0.0, "zero"))
        made.append(helper.make_node("Cast", [less], [f"{name}/number"], to=TensorProto.FLOAT))
        sign = step(
            "Sub", constant(1.0, "one"), step("Mul", f"{name}/number", constant(2.0, "two"))
        )
        step("Mul", sign, node.input[1], to=name)
        return made
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    mode = attrs.get("rounding_mode", b"ROUND").decode().upper()
    need(
        mode in QONNX_ROUNDINGS and all(i in constants for i in node.input[1:4]),
        f"{name!r} is quantized in an unknown way",
    )
    zero, bits = (constants[i].reshape(-1) for i in node.input[2:4])
    b, narrow = int(bits[0]), int(bool(attrs.get("narrow", 0)))
    low, high = (
        (-(2 ** (b - 1)) + narrow, 2 ** (b - 1) - 1)
        if attrs.get("signed", 1)
        else (0, 2**b - 1 - narrow)
    )
    scale, offset = constant(constants[node.input[1]], "scale"), constant(zero[0], "offset")
    ratio = step("Add", step("Div", node.input[0], scale), offset)
    clipped = step("Clip", ratio, constant(float(low), "low"), constant(float(high), "high"))
    if mode in _PLAIN:
        rounded = step(_PLAIN[mode], clipped)
    else:
        size = step("Abs", clipped)
        if mode.startswith("HALF"):
            size = step("Add" if mode == "HALF_UP" else "Sub", size, constant(0.5, "half"))
        rounded = step("Mul", step("Sign", clipped), step(_SIZED[mode], size))
    step("Mul", step("Sub", rounded, offset), scale, to=name)
    return made
