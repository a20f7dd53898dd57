"""Quantized ONNX files to integer networks: the formats QDQ, QOperator, QONNX and plain integer
arithmetic.

The file is walked once. Every tensor is a constant or a known function of the integers of a node
(``lattice``); each operator has one rule (``rule_table``). What is proved is what onnxruntime
computes on CPU with graph optimisations disabled and one thread; for QONNX, whose operators it
lacks, the specification, written in standard operators. The result is compared with that at every
load (``agreement``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bitcrown.errors import ModelError
from bitcrown.model.file import NetworkFile, with_outputs
from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.model.onnx_reader import file_nodes, stored_arrays
from bitcrown.quant.formats import elementwise, qdq, qonnx, qoperator, shaping, sums
from bitcrown.quant.formats.agreement import check_agreement, executable
from bitcrown.quant.formats.lattice import CAST, FLOAT32, RAW, Lattice, chain_values
from bitcrown.quant.formats.rule_table import READING_RULES, NoRule, Reading, type_range
from bitcrown.quant.formats.runtime import Runtime, evaluated, session
from bitcrown.quant.network.entry import Doubles, EvenlySpaced, WholeEntry
from bitcrown.quant.network.graph import Exit, Input, IntegerNetwork, QuantError

_WITH_RULES = (elementwise, qdq, qonnx, qoperator, shaping, sums)
"""Importing these fills ``READING_RULES``."""
_MOST_OUTPUT_VALUES = 1 << 20
_LARGEST_INPUT = 1 << 26


def read_onnx(
    source: NetworkFile | Path,
    whole_input: tuple[int, int] | None = None,
    seed: int = 0,
    samples: int = 16,
) -> IntegerNetwork:
    """The integer network of a quantized ONNX file (a path is opened for this alone), compared with
    onnxruntime on ``samples`` random inputs.

    ``whole_input``: the float input holds whole numbers of this range by agreement with the user
    (pixels 0 to 255). Raises ``QuantError``, naming all operators without a rule at once, or
    another ``ModelError`` for a bad file.
    """
    file = NetworkFile.of(source)
    path, reading = file.path, Reading()
    reading.constants.update(stored_arrays(file))
    reading.final = _final(file)
    entry_name, dtype = _read_input(reading, file, whole_input)
    _walk(reading, file)
    if len(file.outputs) != 1:
        raise QuantError(
            f"{path} has {len(file.outputs)} outputs; quantized networks with one are supported"
        )
    name = file.outputs[0].name
    if name not in reading.tensors:
        raise QuantError(f"{path}: the output {name!r} does not depend on the input")
    try:
        number, exit_ = _exit(reading, reading.tensors[name])
    except QuantError as error:
        raise QuantError(f"{path.name}: {error}") from error
    nodes, number_of = reading.assembly.finished(number)
    assert reading.entry is not None
    network = IntegerNetwork(
        nodes,
        number_of[number],
        reading.entry,
        exit_,
        notes=tuple(reading.notes),
        facts=_facts(file, entry_name),
    )
    content, note = executable(file)
    if note:
        return replace(network, notes=(*network.notes, note))
    trace = {tensor: number_of[k] for tensor, k in reading.trace.items() if k in number_of}
    opened = session(with_outputs(content, trace), str(path))
    runtime = Runtime(opened, str(path), reading.input_shape, dtype)
    network = replace(network, runtime=runtime)
    notes = check_agreement(network, content, seed, samples, trace)
    return replace(network, notes=(*network.notes, *notes))


def _final(file: NetworkFile) -> frozenset[str]:
    found = {tensor.name for tensor in file.outputs}
    for node in reversed(file.proto.graph.node):
        if node.op_type == "DequantizeLinear" and not found.isdisjoint(node.output):
            found.update(node.input[:1])
    return frozenset(found)


def _facts(file: NetworkFile, entry_name: str) -> dict[str, str]:
    formats = ", ".join(file.quantization) or "float32 with whole numbers"
    return {"format": f"ONNX {formats}", "input": entry_name}


def _read_input(
    reading: Reading, file: NetworkFile, whole: tuple[int, int] | None
) -> tuple[str, np.dtype[Any]]:
    """Name and type of the one input, which becomes the first tensor of ``reading``."""
    if len(file.inputs) != 1:
        raise QuantError(
            f"the network has {len(file.inputs)} inputs; quantized networks with one are supported"
        )
    name, shape, dtype = file.inputs[0]
    if shape is None:
        raise QuantError(f"{file.path}: input {name!r} has no shape")
    size = math.prod(shape)
    if size > _LARGEST_INPUT:
        raise QuantError(f"{file.path}: input {name!r} of shape {list(shape)} is too large")
    if dtype is None:
        raise QuantError(f"{file.path}: input {name!r} has no known element type")
    reading.input_shape = shape
    if dtype == FLOAT32 and whole is None:
        reading.tensors[name] = Lattice(RAW, shape, FLOAT32, (), np.arange(size))
        return name, dtype
    if (dtype.kind not in "iu" or dtype.itemsize > 4) and dtype != FLOAT32:
        raise QuantError(
            f"{file.path}: input {name!r} has type {dtype}; float32 and integers of 32 bits are "
            "supported"
        )
    low, high = whole if whole is not None else type_range(dtype)
    ends = np.full(size, low, dtype=np.int64), np.full(size, high, dtype=np.int64)
    reading.assembly.add(Input(Lattice(0, shape, dtype).sample_shape, *ends))
    reading.entry = WholeEntry(dtype, *ends)
    reading.tensors[name] = Lattice(0, shape, dtype, (CAST,) if dtype == FLOAT32 else ())
    return name, dtype


def _walk(reading: Reading, file: NetworkFile) -> None:
    """Apply the rule of every node; what has none is reported together."""
    path = file.path
    problems: list[str] = []
    unknown: dict[str, list[str]] = {}
    lost: set[str] = set()
    for node, proto in zip(file_nodes(file), file.proto.graph.node, strict=True):
        if not lost.isdisjoint(node.inputs):
            if node.op not in READING_RULES:
                unknown.setdefault(node.op, []).append(node.name)
            lost.update(node.outputs)
            continue
        try:
            if not _apply(reading, node, proto):
                unknown.setdefault(node.op, []).append(node.name)
                lost.update(node.outputs)
        except NoRule as error:
            problems.append(str(error))
            lost.update(node.outputs)
        except (
            ModelError,
            KeyError,
            IndexError,
            ValueError,
            TypeError,
            ArithmeticError,
            MemoryError,
        ) as error:
            reason = str(error) if isinstance(error, ModelError) else repr(error)
            raise QuantError(
                f"{path}: node {node.name!r} ({node.op}) has unusable inputs: {reason}"
            ) from error
    parts = [f"{op}: {', '.join(names)}" for op, names in sorted(unknown.items())]
    if parts or problems:
        raise QuantError(
            f"{path.name} is not a quantized network that can be read "
            f"({'; '.join([*parts, *problems])})"
        )


def _apply(reading: Reading, node: OnnxNode, proto: Any) -> bool:
    """False where the operator has no rule."""
    for name in node.inputs:
        if name and name not in reading.constants and name not in reading.tensors:
            raise QuantError(f"no earlier node writes {name!r}")
    constant = all(name in reading.constants for name in node.inputs if name)
    if node.op == "Constant":
        reading.constants[node.outputs[0]] = _constant_value(node)
    elif node.op == "Shape" and node.inputs[0] in reading.tensors:
        first, last, _ = slice(node.attrs.get("start"), node.attrs.get("end")).indices(99)
        shape = reading.tensors[node.inputs[0]].shape
        reading.constants[node.outputs[0]] = np.array(shape[first:last], dtype=np.int64)
    elif constant and node.op not in _FOLDED_HERE and "." not in node.op:
        _fold(reading, node)
    elif node.op in READING_RULES:
        READING_RULES[node.op](reading, node)
    else:
        return False
    return True


_FOLDED_HERE = {
    "QuantizeLinear",
    "DequantizeLinear",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
}
"""Computed by their rules for constants, too, which keep the integers behind them."""


def _constant_value(node: OnnxNode) -> np.ndarray[Any, Any]:
    kinds = {"value": None, "value_float": np.float32, "value_int": np.int64}
    kinds |= {"value_floats": np.float32, "value_ints": np.int64}
    for key, dtype in kinds.items():
        if key in node.attrs:
            return np.asarray(node.attrs[key], dtype=dtype)
    raise NoRule(f"Constant {node.name!r} has no number or tensor")


def _fold(reading: Reading, node: OnnxNode) -> None:
    """A node of constants, computed by onnxruntime in the file's opset."""
    values = [reading.constants[name] if name else None for name in node.inputs]
    attrs = {
        key: value for key, value in node.attrs.items() if not isinstance(value, onnx.GraphProto)
    }
    if len(node.outputs) != 1 or len(attrs) != len(node.attrs):
        raise NoRule(f"{node.op} {node.name!r} of constants is not computed")
    reading.constants[node.outputs[0]] = evaluated(node.op, values, attrs, opset=node.opset)


def _exit(reading: Reading, lattice: Lattice) -> tuple[int, Exit]:
    """Output node and what its integers stand for."""
    if lattice.node == RAW:
        raise QuantError("the output is not quantized")
    lattice = reading.whole(lattice)
    low, high = reading.assembly.low[lattice.node], reading.assembly.high[lattice.node]
    if not lattice.chain or (lattice.chain == (CAST,) and max(-low.min(), high.max()) <= 2**24):
        one = Fraction(1)
        values = tuple(
            EvenlySpaced(Fraction(a), one, b - a + 1)
            for a, b in zip(low.tolist(), high.tolist(), strict=True)
        )
        return lattice.node, Exit(low, values)
    if int((high - low + 1).sum()) > _MOST_OUTPUT_VALUES:
        raise QuantError(
            "the output is not quantized: it takes too many values; add QuantizeLinear to its end"
        )
    rows, falls = [], np.zeros(len(low), dtype=np.int64)
    for n, (least, greatest) in enumerate(_output_values(reading, lattice)):
        if (least != greatest).any():
            raise QuantError(
                "the output is a float32 sum whose rounding depends on the order of summation; "
                "quantize the output"
            )
        falls[n] = least[0] > least[-1]
        row = least[::-1] if falls[n] else least
        rows.append(Doubles(row))
    number = reading.assembly.negated(lattice.node, falls) if falls.any() else lattice.node
    return number, Exit(np.where(falls == 1, -high, low), tuple(rows))


def _output_values(reading: Reading, lattice: Lattice) -> Iterator[tuple[Any, Any]]:
    """Least and greatest float of every integer of each output element."""
    low, high = reading.assembly.low[lattice.node], reading.assembly.high[lattice.node]
    for n in range(lattice.size):
        q = np.arange(low[n], high[n] + 1, dtype=np.int64)
        least, greatest = chain_values(lattice.chain, q[None], np.array([n]))
        yield least[0].astype(np.float64), greatest[0].astype(np.float64)
