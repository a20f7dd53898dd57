"""Does the integer network of a certificate enclose what a quantized ONNX file computes? And what
is then claimed?

The file is parsed with the ``onnx`` package and walked once, in order; every operator has a rule of
the checker's own (``elementwise``, ``quantizers``, ``moves``, ``sums``, ``pairs``), constants
are computed by onnxruntime. The result is a proof, as far as the rules are right about
onnxruntime's arithmetic, and that is then compared, bit for bit, on inputs that the checker draws
(``agreement``).

The property is the file's own text: its boxes become integers by the quantizer that the file begins
with, and each of its cases must imply the certificate's, over the real values of the outputs
(``integers.property``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil, floor, prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from bitcrown.check.certificates.documents import Reject, need
from bitcrown.check.certificates.integers.affine import Integers
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.property import (
    Claim,
    EvenValues,
    OutputValues,
    RealConstraint,
    implies_case,
    is_impossible,
    require_covered,
)
from bitcrown.check.certificates.onnx_files import (
    attributes_of,
    element_type,
    extents,
    graph_inputs,
    require_one_writer,
)
from bitcrown.check.certificates.quantized import (
    elementwise,
    integer_sums,
    moves,
    pairs,
    quantizers,
    sums,
)
from bitcrown.check.certificates.quantized.chain import (
    BINARY32,
    INPUT,
    TO_FLOAT,
    ChainTensor,
    NumpyArray,
    values_of,
)
from bitcrown.check.certificates.quantized.reading import (
    _RULES,
    FileReading,
    Operator,
    integer_range,
)
from bitcrown.check.certificates.quantized.runtime import computed
from bitcrown.spec.problem import Constraint, Problem

_MOST_OUTPUTS = 1 << 20
_WITH_RULES = (elementwise, integer_sums, moves, pairs, quantizers, sums)
"""Importing these fills ``_RULES``."""
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_RANDOM = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
    "Dropout",
)


class Read(NamedTuple):
    """A file that the certificate's network encloses: the reading, the model as parsed, outputs and
    their values."""

    reading: FileReading
    model: Any
    dtype: np.dtype[Any]
    outputs: list[OutputValues]


def read_file(model: Any, network: IntegerCircuit) -> Read:
    """Raises ``Reject`` where the network is not what the file computes, or cannot be seen to
    be."""
    need(
        not model.functions and not model.graph.sparse_initializer,
        "the file has functions or sparse weights",
    )
    require_one_writer(model)
    reading = FileReading(network)
    for tensor in model.graph.initializer:
        reading.constants[tensor.name] = _stored(tensor)
    dtype = _enter(reading, model)
    for node in _operators(model):
        _apply(reading, node)
    need(len(model.graph.output) == 1, f"the file has {len(model.graph.output)} outputs")
    return Read(reading, model, dtype, list(_outputs(reading, model.graph.output[0].name)))


def _stored(tensor: Any) -> NumpyArray:
    need(
        not tensor.external_data and tensor.data_location == 0,
        f"weight {tensor.name!r} is kept in another file",
    )
    return np.asarray(numpy_helper.to_array(tensor))


def _enter(reading: FileReading, model: Any) -> np.dtype[Any]:
    """The file's input: real numbers that it quantizes itself, or integers, which then are node
    0."""
    inputs = graph_inputs(model)
    need(
        len(inputs) == 1 and inputs[0].type.tensor_type.HasField("shape"),
        "the file has not one input with a shape",
    )
    shape, dtype = extents(inputs[0]), element_type(inputs[0])
    size = prod(shape)
    need(size == reading.net.sizes[0], "the network has another number of inputs than the file")
    reading.shape = shape
    if dtype != BINARY32:
        low, high = integer_range(dtype)
        fits = set(reading.net.low[0]) == {low} and set(reading.net.high[0]) == {high}
        need(fits, f"the network's input does not have the range of {dtype}")
    number = INPUT if dtype == BINARY32 else 0
    reading.tensors[inputs[0].name] = [
        ChainTensor(np.full(size, number), np.arange(size), shape, dtype)
    ]
    return dtype


def _operators(model: Any) -> Iterator[Operator]:
    opset = next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
    )
    for proto in model.graph.node:
        domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
        yield Operator(
            domain + proto.op_type,
            proto.name,
            [*proto.input],
            [*proto.output],
            attributes_of(proto),
            proto,
            opset,
        )


def _apply(reading: FileReading, node: Operator) -> None:
    """One operator: computed where all its inputs are known, by its rule elsewhere."""
    used = [name for name in node.inputs if name]
    need(
        all(n in reading.constants or n in reading.tensors for n in used),
        f"{node} reads what nothing writes",
    )
    if node.op == "Shape" and used[0] in reading.tensors:
        shape = np.array(reading.tensors[used[0]][0].shape, dtype=np.int64)
        first, last, _ = slice(node.attrs.get("start"), node.attrs.get("end")).indices(len(shape))
        reading.constants[node.outputs[0]] = shape[first:last]
        return
    known = all(name in reading.constants for name in used)
    if known and node.op not in moves.MOVES and "." not in node.op:
        # A branch or a loop body may read any tensor of the file by its name, and a random number
        # is no constant: neither is a function of the inputs that the node lists.
        is_function = node.op not in _RANDOM and all(
            a.type not in _GRAPHS for a in node.proto.attribute
        )
        need(is_function, f"{node} is not a function of constants alone")
        values = computed(node, [reading.constants[name] if name else None for name in node.inputs])
        reading.constants.update(zip(node.outputs, values, strict=True))
        if node.op == "DequantizeLinear":
            _keep_grid(reading, node)
        return
    need(node.op in _RULES, f"{node} has no rule here")
    _RULES[node.op](reading, node)


def _keep_grid(reading: FileReading, node: Operator) -> None:
    ints = reading.constants[node.inputs[0]]
    scale, zero, _ = quantizers.parameters(reading, node, ints.shape, ints.dtype)
    scales = np.broadcast_to(scale.astype(np.float64), ints.shape)
    reading.grids[node.outputs[0]] = ints.astype(np.int64) - zero, scales


def _outputs(reading: FileReading, name: str) -> list[OutputValues]:
    """The real value of every integer of every output of the network. Raises ``Reject``."""
    number = reading.net.output
    origin = reading.origins[number]
    low, high = (np.array(side[number]) for side in (reading.net.low, reading.net.high))
    need(name in reading.tensors, "the output does not depend on the input")
    for view in reading.views(name):
        if not origin.is_of(view) or not (np.abs(origin.factor) == 1).all():
            continue
        if not view.chain or (view.chain == (TO_FLOAT,) and max(-low.min(), high.max()) <= 2**24):
            if (origin.factor == 1).all() and not origin.shift.any():
                return [
                    EvenValues(int(a), int(b), Fraction(1), Fraction(int(a)))
                    for a, b in zip(low, high, strict=True)
                ]
            continue
        count = sum(b - a + 1 for a, b in zip(low.tolist(), high.tolist(), strict=True))
        need(count <= _MOST_OUTPUTS, "the output takes too many values")
        tables = []
        for n in range(view.size):
            q = origin.factor[n] * (np.arange(low[n], high[n] + 1) - origin.shift[n])
            least, greatest = values_of(view.chain, q[None], np.array([n]))
            if (
                not np.array_equal(least, greatest)
                or view.keys is not None
                or (np.diff(least[0]) < 0).any()
            ):
                break
            tables.append(
                OutputValues(
                    int(low[n]), [Fraction(v) for v in least[0].astype(np.float64).tolist()]
                )
            )
        else:
            require_covered(tables, reading.net)
            return tables
    raise Reject(
        "the network's output is not the file's, or is a float32 sum whose rounding is left open"
    )


def claim_of_file(read: Read, problem: Problem, hint: Claim) -> Claim:
    """What the property's cases demand of the certificate's. Raises ``Reject`` where the
    certificate claims less.

    ``hint``: the box and the cases that the certificate refutes. Every case of the property has to
    be impossible, or to imply one of them; the integers that its box becomes have to lie in the
    certificate's.
    """
    real: list[list[list[RealConstraint]]] = [[] for _ in hint.cases]
    place = 0
    boxes: dict[tuple[int, int], tuple[Integers, Integers]] = {}
    for number, case in enumerate(problem.cases):
        inputs, outputs = problem.n_inputs, len(read.outputs)
        rules = [_real_rule(constraint, inputs, outputs) for constraint in case.constraints]
        key = id(case.lower), id(case.upper)  # cases with one box share the tuples
        if key not in boxes:
            boxes[key] = integer_box(read, case.lower, case.upper)
        low, high = boxes[key]
        inside = all(
            a <= c and d <= b for a, b, c, d in zip(hint.low, hint.high, low, high, strict=True)
        )
        empty = any(a > b for a, b in zip(low, high, strict=True))
        if empty or is_impossible(rules, read.outputs):
            continue
        need(inside, f"case {number} of the property has inputs outside of the certificate's box")
        order = [*range(place, len(hint.cases)), *range(place)]
        found = next((n for n in order if implies_case(hint.cases[n], rules, read.outputs)), None)
        if found is None:
            raise Reject(f"case {number} of the property implies no case of the certificate")
        real[found].append(rules)
        place = found + 1
    return hint._replace(outputs=read.outputs, real=[*real])


def _real_rule(constraint: Constraint, n_inputs: int, outputs: int) -> RealConstraint:
    terms: dict[int, Fraction] = {}
    for monomial, factor in constraint.terms:
        need(
            len(monomial) == 1 and monomial[0] >= n_inputs,
            "a constraint is not linear in the outputs alone",
        )
        need(monomial[0] - n_inputs < outputs, "a constraint names no output")
        terms[monomial[0] - n_inputs] = terms.get(monomial[0] - n_inputs, Fraction(0)) + factor
    return RealConstraint(terms, constraint.bound, constraint.strict)


def integer_box(
    read: Read, lower: Sequence[Fraction], upper: Sequence[Fraction]
) -> tuple[Integers, Integers]:
    """The integers of node 0 for all inputs that the property means, read exactly or as the nearest
    float32.

    An integer input whose bounds coincide on a number that is none is the nearest integer, as a
    reader that rounds takes it.
    """
    net = read.reading.net
    need(
        len(lower) == len(upper) == net.sizes[0],
        "the property has another number of inputs than the file",
    )
    near = [np.array([_nearest(v) for v in side], np.float32) for side in (lower, upper)]
    if read.dtype == BINARY32:
        chain = read.reading.entry
        if chain is None:
            raise Reject("the file's input is never made integers")
        ends = values_of(chain, np.stack(near, axis=1), np.arange(len(lower)))
        return ends[0].min(axis=1).astype(np.int64).tolist(), ends[1].max(axis=1).astype(
            np.int64
        ).tolist()
    low = [ceil(min(a, Fraction(float(x)))) for a, x in zip(lower, near[0], strict=True)]
    high = [floor(max(b, Fraction(float(x)))) for b, x in zip(upper, near[1], strict=True)]
    for n, (a, b) in enumerate(zip(lower, upper, strict=True)):
        if a == b:
            low[n], high[n] = min(low[n], round(a)), max(high[n], round(a))
    ranges = zip(low, net.low[0], strict=True), zip(high, net.high[0], strict=True)
    return [max(a, b) for a, b in ranges[0]], [min(a, b) for a, b in ranges[1]]


def _nearest(value: Fraction) -> float:
    """The nearest float32, the largest finite one beyond the range."""
    most = float(np.finfo(np.float32).max)
    if abs(value) >= Fraction(most):
        return most if value > 0 else -most
    near = np.float32(float(value))
    # float(value) may have rounded onto a tie of float32: compare the neighbours exactly
    options = [
        near,
        np.nextafter(near, np.float32(-np.inf)),
        np.nextafter(near, np.float32(np.inf)),
    ]
    finite = [x for x in options if np.isfinite(x)]
    best = min(abs(Fraction(float(x)) - value) for x in finite)
    return float(next(x for x in finite if abs(Fraction(float(x)) - value) == best))
