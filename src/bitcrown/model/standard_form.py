"""QONNX and MCT in standard operators: what onnxruntime, which lacks these formats, is to run.

Quant, BipolarQuant and Trunc round but keep float tensors; their specification says what they
compute, in float32, one operation after the other, and so do the nodes that are written here. A
tensor that is known (a weight) is computed at once. ``Conv`` and ``MaxPool`` of the channels-last
domain stand between two transpositions. ``MultiThreshold`` counts thresholds that are not above its
input, exactly, then scales and shifts in float32. ``FloatQuant`` rounds to few bits, with a step of
its own between each two powers of two: its value is the sum of what each of these ranges adds.

The quantizers of Sony's MCT (domain ``mct_quantizers``) clip, divide, round half to even and
multiply, in float32; a threshold stands for the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bitcrown.errors import UnsupportedError

_LAST = "qonnx.custom_op.channels_last"
_WHOLE = {"ROUND": "Round", "HALF_EVEN": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}
_SIZED = {
    **dict.fromkeys(("DOWN", "ROUND_TO_ZERO", "HALF_UP"), "Floor"),
    **dict.fromkeys(("UP", "HALF_DOWN"), "Ceil"),
}
"""Roundings that act on the size of a number; the two halves move it first."""
_MOST_BITS = 5
"""Of the exponent of a ``FloatQuant``: each of its values is two ranges."""
_OLD = ("Clip", "Pad", "Resize", "TopK")
"""What changed between opset 9 and 11, which brings ``Round``."""
_NUMPY: dict[str, Callable[..., Any]] = {
    "Div": np.divide,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Round": np.rint,
    "Ceil": np.ceil,
    "Floor": np.floor,
    "Abs": np.abs,
    "Sign": np.sign,
    "Clip": np.clip,
}


def standard_form(model: Any, domains: tuple[str, ...]) -> Any:
    """The same network with the operators of ``domains`` in standard ones. Raises
    ``UnsupportedError`` where it cannot be written."""
    written = onnx.ModelProto()
    written.CopyFrom(model)
    opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0)
    if opset < 11 and any(node.op_type in _OLD for node in model.graph.node):
        raise UnsupportedError(
            "the network has operators of an old opset that have no standard form; raise its "
            "opset to 13"
        )
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    infos = (*model.graph.input, *model.graph.value_info)
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in infos}
    del written.graph.node[:]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        if node.domain in domains:
            written.graph.node.extend(_Expansion(node, constants, ranks, opset).nodes)
        else:
            written.graph.node.append(node)
    others = [e for e in model.opset_import if e.domain not in ("", "ai.onnx", *domains)]
    del written.opset_import[:]
    written.opset_import.extend([helper.make_opsetid("", max(opset, 11)), *others])
    return written


def _greatest(bits: float, mantissa: float, bias: float, largest: float) -> float:
    """Where a ``FloatQuant`` saturates; 0 where it has other numbers than are read."""
    if not 1 <= bits <= _MOST_BITS or not 0 <= mantissa <= 20 or not abs(bias) <= 64:
        return 0.0
    if not all(value.is_integer() for value in (bits, mantissa, bias)):
        return 0.0
    found = min(largest, (2.0 - 2.0**-mantissa) * 2.0 ** (2.0**bits - 1 - bias))
    exponent = max(np.floor(np.log2(found)), 1.0 - bias) if found > 0 else 0.0
    return found if found > 0 and found % 2.0 ** (exponent - mantissa) == 0 else 0.0


class _Expansion:
    """The nodes of one operator; ``constants`` gets its result where that is known. ``ranks``: of
    the tensors whose shape the file declares."""

    def __init__(
        self, node: Any, constants: dict[str, Any], ranks: Mapping[str, int], opset: int
    ) -> None:
        self.node, self.constants, self.nodes = node, constants, list[Any]()
        self.ranks, self.opset = ranks, opset
        self.attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        kinds = {"IntQuant": "Quant"}
        if node.domain != _LAST:
            kinds |= {"Conv": "", "MaxPool": ""}
        kind = kinds.get(node.op_type, node.op_type)
        rules = {
            "Quant": self._quant,
            "BipolarQuant": self._bipolar,
            "Trunc": self._trunc,
            "Conv": self._windows,
            "MaxPool": self._windows,
            "MultiThreshold": self._thresholds,
            "FloatQuant": self._float_quant,
            **dict.fromkeys(("ActivationPOTQuantizer", "ActivationSymmetricQuantizer"), self._mct),
            **dict.fromkeys(("WeightsPOTQuantizer", "WeightsSymmetricQuantizer"), self._mct),
        }
        if kind not in rules:
            raise UnsupportedError(f"{node.op_type} {self._name!r} of {node.domain} has no rule")
        rules[kind]()

    @property
    def _name(self) -> str:
        return str(self.node.output[0])

    def _constant(self, value: Any, to: str = "") -> str:
        name = to or f"{self._name}/{len(self.nodes)}"
        array = np.asarray(value, dtype=np.float32)
        tensor = numpy_helper.from_array(array, name)
        self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        self.constants[name] = array
        return name

    def _step(self, op: str, *inputs: str, to: str = "") -> str:
        if all(name in self.constants for name in inputs):
            with np.errstate(all="ignore"):
                value = _NUMPY[op](*(self.constants[n].astype(np.float32) for n in inputs))
            return self._constant(value, to)
        return self._added(op, inputs, to)

    def _added(self, op: str, inputs: Any, to: str = "", **attrs: Any) -> str:
        name = to or f"{self._name}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attrs))
        return name

    def _known(self, index: int) -> float:
        """The one number at an input."""
        name = self.node.input[index]
        value = self.constants[name].reshape(-1) if name in self.constants else np.zeros(0)
        if value.size != 1 or not np.isfinite(value).all():
            raise UnsupportedError(
                f"{self.node.op_type} {self._name!r} has no standard form: input {index} is not "
                "one known number"
            )
        return float(value[0])

    def _rounded(self, x: str, default: str) -> str:
        mode = self.attrs.get("rounding_mode", default)
        mode = (mode.decode() if isinstance(mode, bytes) else mode).upper()
        if mode in _WHOLE:
            return self._step(_WHOLE[mode], x)
        if mode not in _SIZED:
            raise UnsupportedError(f"{self.node.op_type} {self._name!r} rounds by {mode!r}")
        size = self._step("Abs", x)
        if mode.startswith("HALF"):
            op = "Add" if mode == "HALF_UP" else "Sub"
            size = self._step(op, size, self._constant(0.5))
        return self._step("Mul", self._step("Sign", x), self._step(_SIZED[mode], size))

    def _ends(self, index: int) -> tuple[str, str]:
        """Least and greatest integer of the bits at an input."""
        bits, narrow = self._known(index), int(bool(self.attrs.get("narrow", 0)))
        if not bits >= 1:
            raise UnsupportedError(
                f"{self.node.op_type} {self._name!r} has {bits:g} bits, but needs at least one"
            )
        half = 2.0 ** (bits - 1)
        if self.attrs.get("signed", 1):
            return self._constant(narrow - half), self._constant(half - 1)
        return self._constant(0.0), self._constant(2 * half - 1 - narrow)

    def _quant(self) -> None:
        x, scale = self.node.input[:2]
        zero = self._constant(self._known(2))
        ratio = self._step("Add", self._step("Div", x, scale), zero)
        rounded = self._rounded(self._step("Clip", ratio, *self._ends(3)), "ROUND")
        self._step("Mul", self._step("Sub", rounded, zero), scale, to=self._name)

    def _mct(self) -> None:
        """Thresholds: an attribute, or for weights an input, one for each entry of an axis."""
        x, bits = self.node.input[0], int(self.attrs.get("num_bits", 0))
        is_weight = self.node.op_type.startswith("Weights")
        signed = is_weight or bool(self.attrs.get("signed", 0))
        if is_weight:
            limit = self.constants.get(self.node.input[1], np.zeros(()))
            rank = self.constants[x].ndim if x in self.constants else 0
            axis = int(self.attrs.get("channel_axis", 0))
            if self.attrs.get("per_channel", 0) and -rank <= axis < rank:
                limit = limit.reshape([-1 if k == axis % rank else 1 for k in range(rank)])
        else:
            limit, rank = np.asarray(self.attrs.get("threshold", 0.0)), 1
        limit = limit.astype(np.float32)
        if not rank or not 1 <= bits <= 16 or not (np.isfinite(limit) & (limit > 0)).all():
            raise UnsupportedError(
                f"{self.node.op_type} {self._name!r} has no standard form: its weight or threshold "
                "is not known, or it has more than 16 bits"
            )
        scale = limit / np.float32(2.0 ** (bits - signed))
        ends = self._constant(-limit if signed else 0.0), self._constant(limit - scale)
        cut = self._step("Clip", x, *ends)
        divided = self._step("Round", self._step("Div", cut, self._constant(scale)))
        self._step("Mul", divided, self._constant(scale), to=self._name)

    def _float_quant(self) -> None:
        """Numbers of ``m`` bits behind the point: below ``2^(e + 1)``, with ``e`` the least
        exponent, their distance is ``2^(e - m)``; from ``2^k`` to ``2^(k + 1)`` it is
        ``2^(k - m)``. Powers of two are among them, so each range is cut out and rounded alone;
        all of it is exact in float32."""
        x, scale = self.node.input[:2]
        bits, mantissa, bias, largest = (self._known(k) for k in (2, 3, 4, 5))
        mode = self.attrs.get("rounding_mode", b"ROUND").decode().upper()
        given = mode, int(self.attrs.get("signed", 1)), int(self.attrs.get("saturation", 1))
        greatest = _greatest(bits, mantissa, bias, largest) if given == ("ROUND", 1, 1) else 0.0
        if not greatest:
            raise UnsupportedError(
                f"FloatQuant {self._name!r} is read with a sign, up to {_MOST_BITS} bits of "
                "exponent, rounding to nearest, and saturation at one of its numbers"
            )
        ratio, least = self._step("Div", x, scale), 1.0 - bias
        ranges = [(-min(2.0 ** (least + 1), greatest), min(2.0 ** (least + 1), greatest), least)]
        for k in np.arange(least + 1, 2.0**bits - bias):
            if 2.0**k < greatest:
                end = min(2.0 ** (k + 1), greatest)
                ranges += [(2.0**k, end, k), (-end, -(2.0**k), k)]
        total = ""
        for low, high, exponent in ranges:
            step = self._constant(2.0 ** (exponent - mantissa))
            cut = self._step("Clip", ratio, self._constant(low), self._constant(high))
            part = self._step("Mul", self._step("Round", self._step("Div", cut, step)), step)
            if low > 0 or high < 0:
                part = self._step("Sub", part, self._constant(low if low > 0 else high))
            total = self._step("Add", total, part) if total else part
        self._step("Mul", total, scale, to=self._name)

    def _trunc(self) -> None:
        """Version 2 has a scale of the output, and clips."""
        x, scale = self.node.input[:2]
        zero, is_late = self._known(2), len(self.node.input) > 5
        whole = self._step("Div", x, scale)
        whole = self._step("Round", self._step("Add", whole, self._constant(zero)))
        after, shift = scale, self._known(3) - self._known(5 if is_late else 4)
        if is_late:
            after = self.node.input[4]
            shift = float(np.rint(np.log2(self._known(4) / self._known(1))))
        value = self._step("Div", whole, self._constant(2.0**shift))
        value = self._step("Clip", value, *self._ends(5)) if is_late else value
        zero = zero / 2.0**shift if is_late else zero
        value = self._step("Sub", self._rounded(value, "FLOOR"), self._constant(zero))
        self._step("Mul", value, after, to=self._name)

    def _bipolar(self) -> None:
        """``x >= 0`` as ``1 - (x < 0)``, then ``2 b - 1``."""
        x, scale = self.node.input[:2]
        if x in self.constants and scale in self.constants:
            sign = np.where(self.constants[x] >= 0, 1, -1).astype(np.float32)
            self._constant(sign * self.constants[scale].astype(np.float32), self._name)
            return
        less = self._added("Less", [x, self._constant(0.0)])
        twice = self._step("Mul", self._number(less), self._constant(2.0))
        self._step("Mul", self._step("Sub", self._constant(1.0), twice), scale, to=self._name)

    def _number(self, truth: str) -> str:
        name = f"{self._name}/number"
        self.nodes.append(helper.make_node("Cast", [truth], [name], to=onnx.TensorProto.FLOAT))
        return name

    def _windows(self) -> None:
        """The channels of input, weight and result are their last axis."""
        rank = len(self.attrs["kernel_shape"]) + 2
        first = [0, rank - 1, *range(1, rank - 1)]
        parts = [self._added("Transpose", [x], perm=first) for x in self.node.input[:2]]
        attrs = {key: value for key, value in self.attrs.items() if key != "data_layout"}
        found = self._added(self.node.op_type, [*parts, *self.node.input[2:]], "", **attrs)
        self._added("Transpose", [found], self._name, perm=[0, *range(2, rank), 1])

    def _thresholds(self) -> None:
        """Thresholds ``[channels, levels]``, or one row for all channels; a new last axis holds the
        comparisons. Channels are the second axis, or the last one where the layout says so."""
        x, name = self.node.input[:2]
        given = self.constants.get(name)
        if given is None or given.ndim != 2 or (len(given) > 1 and x not in self.ranks):
            raise UnsupportedError(
                f"MultiThreshold {self._name!r} has no standard form: its thresholds are no known "
                "matrix, or the rank of its input is not declared"
            )
        layout = self.attrs.get("data_layout", b"NCHW").decode()
        after = 0
        if len(given) > 1 and not layout.endswith("C"):
            after = self.ranks[x] - 2
        rows = given.reshape(len(given), *([1] * after), -1)
        wide = self._along_last("Unsqueeze", x)
        less = self._added("Less", [wide, self._constant(rows)])
        count = self._along_last("ReduceSum", self._number(self._added("Not", [less])), keepdims=0)
        scale = self._constant(float(self.attrs.get("out_scale", 1.0)))
        bias = self._constant(float(self.attrs.get("out_bias", 0.0)))
        self._step("Add", self._step("Mul", count, scale), bias, to=self._name)

    def _along_last(self, op: str, x: str, **attrs: Any) -> str:
        """Which axis is an attribute before opset 13 and an input since."""
        if self.opset < 13:
            return self._added(op, [x], axes=[-1], **attrs)
        name = f"{self._name}/{len(self.nodes)}"
        tensor = numpy_helper.from_array(np.array([-1], dtype=np.int64), name)
        self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return self._added(op, [x, name], **attrs)
