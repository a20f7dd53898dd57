"""What is true of an instance, by means that share nothing with bitcrown.

*Exactly*: networks of piecewise linear operators on at most two inputs that vary are cut into the
polygons on which they are affine, in rationals; a case holds somewhere iff one polygon clipped by
its rows is not empty.

*By a point*: a point of the box whose outputs satisfy a case by more than what rounding can do.
Outputs as real numbers come from onnx's reference evaluator in float64; how far these can be off is
measured by shaking all weights by some units in the last place. They must agree with onnxruntime on
the file itself, so that neither can err alone.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.fuzz.graphs import session
from tests.fuzz.properties import Array, Box, Property

SHAKE = 2.0**-50
SINGLE = 2.0**-22
"""Weights of linear interpolation are float32 in onnxruntime, and that is the function which
bitcrown bounds; normalisations have their moments in float32 (``stash_type``), here as there, also
in networks of float64."""
NORMALISATIONS = ("LayerNormalization", "GroupNormalization", "RMSNormalization")
SHAKES = 2
SAFETY = 64.0
AGREEMENT = {"float16": 2e-2, "float32": 2e-3, "float64": 1e-7}
SIZING = ("Resize", "Upsample", "Range")
"""Constants of these say how large a tensor is."""
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


@dataclass
class Instance:
    """``point``: an input [n] of the file's type that may be a witness; ``facts``: what was drawn,
    for the report."""

    model: Any
    prop: Property
    point: Array | None
    facts: dict[str, Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(
            helper.tensor_dtype_to_np_dtype(self.model.graph.input[0].type.tensor_type.elem_type)
        )

    @property
    def shape(self) -> list[int]:
        return [d.dim_value for d in self.model.graph.input[0].type.tensor_type.shape.dim]


class Runtime:
    """onnxruntime on the file."""

    def __init__(self, instance: Instance) -> None:
        self.session = session(instance.model)
        self.shape, self.dtype = instance.shape, instance.dtype

    def outputs(self, point: Array) -> Array:
        """``[m]`` at ``point [n]``, in the file's own type."""
        found: Array = self.session.run(
            None, {"x": np.asarray(point, self.dtype).reshape(self.shape)}
        )[0].reshape(-1)
        return found


class Erf(OpRun):  # type: ignore[misc]
    """onnx's own rounds to float32 on the way."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=["d"])(x),)


class Gelu(OpRun):  # type: ignore[misc]
    """onnx's own is made of its own Erf."""

    op_domain = ""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + np.vectorize(math.erf, otypes=["d"])(x / math.sqrt(2))),)


class Reference:
    """The network as a function of real numbers, in float64, and what its rounding may be."""

    def __init__(self, instance: Instance) -> None:
        rng = np.random.default_rng(0)
        shake = SINGLE if _is_partly_single(instance.model) else SHAKE
        models = [_widened(instance.model, rng, size) for size in [0.0] + [shake] * SHAKES]
        self.evaluators = [ReferenceEvaluator(model, new_ops=[Erf, Gelu]) for model in models]
        self.shape, self.is_float = instance.shape, instance.dtype.kind == "f"

    def outputs(self, point: Array) -> tuple[Array, Array] | None:
        """Outputs and their error bounds, both ``[m]``; None where the evaluator cannot say."""
        value = np.asarray(point, np.float64 if self.is_float else point.dtype).reshape(self.shape)
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = [
                    np.asarray(e.run(None, {"x": value})[0], np.float64).reshape(-1)
                    for e in self.evaluators
                ]
        except Exception:  # noqa: BLE001 (the evaluator has no rule, or none for float64: then nothing is claimed)
            return None
        if not all(part.shape == found[0].shape and np.isfinite(part).all() for part in found):
            return None
        spread = np.abs(np.stack(found[1:]) - found[0]).max(axis=0)
        return found[0], SAFETY * (spread + SHAKE * np.abs(found[0]) + 1e-320)


def _is_partly_single(model: Any) -> bool:
    if any(node.op_type in NORMALISATIONS for node in model.graph.node):
        return True
    modes = [
        a.s
        for node in model.graph.node
        if node.op_type in ("Resize", "Upsample")
        for a in node.attribute
    ]
    return b"linear" in modes


def _widened(model: Any, rng: np.random.Generator, shake: float) -> Any:
    """The model with float64 in place of every float type, its weights moved by ``shake`` at
    random."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    if wide.graph.input[0].type.tensor_type.elem_type in FLOATS:
        wide.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    wide.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    sizes = {name for node in model.graph.node if node.op_type in SIZING for name in node.input}
    del wide.graph.initializer[:]
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype.kind == "f":
            moved = 1 + (0.0 if tensor.name in sizes else shake) * rng.normal(size=value.shape)
            value = np.asarray(value, np.float64) * moved
        wide.graph.initializer.append(numpy_helper.from_array(value, tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = onnx.TensorProto.DOUBLE
            if node.op_type == "Constant" and attribute.name == "value_float":
                value = numpy_helper.from_array(np.asarray(attribute.f, np.float64))
                attribute.CopyFrom(helper.make_attribute("value", value))
    return wide


def rationals(*parts: Array) -> list[Fraction]:
    return [Fraction(v) for part in parts for v in part.tolist()]


def satisfied_case(
    prop: Property, point: Array, outputs: Array, errors: Array | None = None
) -> int | None:
    """The first case whose rows all hold at real ``outputs`` [m] that may be off by ``errors``;
    None if none does."""
    if not np.isfinite(outputs.astype(np.float64)).all():
        return None
    values = rationals(point, outputs)
    room = rationals(errors) if errors is not None else [Fraction(0)] * len(outputs)
    for index, case in enumerate(prop.cases):
        if all(
            row.excess(values)
            + sum(
                (
                    abs(Fraction(c)) * room[i - prop.inputs]
                    for i, c in row.terms
                    if i >= prop.inputs
                ),
                Fraction(0),
            )
            <= 0
            for row in case
        ):
            return index
    return None


class Judge:
    """Whether points violate: ``real`` (as real arithmetic has it) or ``runtime`` (as onnxruntime
    rounds)."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.runtime, self.reference = Runtime(instance), Reference(instance)

    def violates(self, point: Array) -> bool:
        """As onnxruntime computes."""
        return satisfied_case(self.instance.prop, point, self.runtime.outputs(point)) is not None

    def verdict(self, point: Array) -> str:
        """``real``, ``runtime`` (only that) or an empty word: nothing certain."""
        prop = self.instance.prop
        own = self.runtime.outputs(point)
        by_runtime = satisfied_case(prop, point, own) is not None
        found = self.reference.outputs(point)
        if found is not None and satisfied_case(prop, point, *found) is not None:
            size = max(float(np.abs(found[0]).max()), 1e-300)
            tolerance = AGREEMENT.get(own.dtype.name, 2e-3) * size
            # the evaluator is not right about the shapes of all operators: then it cannot say
            if (
                own.shape == found[0].shape
                and np.abs(own.astype(np.float64) - found[0]).max() <= tolerance
            ):
                return "real"
        return "runtime" if by_runtime else ""


def searched(instance: Instance, rng: np.random.Generator, points: int) -> Array | None:
    """A point that onnxruntime says satisfies a case: corners and random points, then descent
    around the best."""
    runtime, prop = Runtime(instance), instance.prop
    box = Box.of(prop, instance.dtype)
    best, least = box.point(rng, instance.dtype), np.inf
    width = box.high - box.low
    for k in range(points):
        if k < points // 2:
            point = box.point(rng, instance.dtype)
        else:
            noise = (
                rng.normal(size=len(width))
                * width
                * 10.0 ** -rng.integers(0, 6)
                * (rng.random(len(width)) < 0.5)
            )
            point = box.nearest(best.astype(np.float64) + noise, instance.dtype)
        value = _worst_excess(prop, point, runtime.outputs(point))
        if value < least:
            best, least = point, value
        if least <= 0 and satisfied_case(prop, best, runtime.outputs(best)) is not None:
            return best
    return None


def _worst_excess(prop: Property, point: Array, outputs: Array) -> float:
    """In floats: for finding points only."""
    values = np.concatenate([point.astype(np.float64), outputs.astype(np.float64)])
    if not np.isfinite(values).all():
        return np.inf
    worst = []
    with np.errstate(all="ignore"):
        for case in prop.cases:
            rows = [
                sum(float(c) * values[i] for i, c in row.terms) - float(row.rhs) for row in case
            ]
            worst.append(
                max(v if row.op == "<=" else -v for v, row in zip(rows, case, strict=True))
            )
    return float(np.nanmin(worst)) if not np.isnan(worst).all() else np.inf
