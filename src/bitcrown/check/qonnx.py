"""QONNX for onnxruntime, which has none of its operators: written out in standard ones.

The checker's own reading of the QONNX specification (the prover has another): every operator is a
sequence of float32 operations, each rounded once, so that it can be replayed bit for bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bitcrown.errors import ModelError
from bitcrown.files import no_model

QONNX = (
    *("onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.general"),
    "qonnx.custom_op.channels_last",
)
_MCT = "mct_quantizers"
_BY_SIZE = {
    "UP": "Ceil",
    "DOWN": "Floor",
    "ROUND_TO_ZERO": "Floor",
    "HALF_UP": "Floor",
    "HALF_DOWN": "Ceil",
}
"""Roundings that act on the size of a number; the two halves move it first."""
_MCT_QUANTIZERS = {
    f"{what}{how}Quantizer" for what in ("Activation", "Weights") for how in ("POT", "Symmetric")
}
_PLAIN = {"ROUND": "Round", "HALF_EVEN": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}


def standard_content(content: bytes, path: object) -> bytes | None:
    """What onnxruntime can run in place of ``content``; None where it is no QONNX file. Raises
    ``ModelError``."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf's own classes depend on its implementation
        raise no_model(path, content) from error
    if not any(node.domain in (*QONNX, _MCT) for node in model.graph.node):
        return None
    written: bytes = without_qonnx(model).SerializeToString()
    return written


def without_qonnx(model: Any) -> Any:
    """The same network without QONNX operators. Raises ``ModelError``."""
    import onnx
    from onnx import helper, numpy_helper

    written = onnx.ModelProto()
    written.CopyFrom(model)
    if not any(node.domain in (*QONNX, _MCT) for node in model.graph.node):
        return written
    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    axes = {
        info.name: len(info.type.tensor_type.shape.dim)
        for info in (*model.graph.value_info, *model.graph.input)
    }
    opset = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0)
    del written.graph.node[:]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        is_plain = node.domain not in (*QONNX, _MCT)
        written.graph.node.extend(
            [node] if is_plain else _Writer(node, known, axes, opset).written()
        )
    if opset < 11 and any(
        node.op_type in ("Clip", "Pad", "Resize", "TopK") for node in model.graph.node
    ):
        raise ModelError("operators of an old opset stand beside QONNX")
    others = [e for e in model.opset_import if e.domain not in ("", "ai.onnx", _MCT, *QONNX)]
    del written.opset_import[:]
    written.opset_import.extend([helper.make_opsetid("", max(opset, 11)), *others])
    return written


class _Writer:
    """One operator of QONNX; ``known`` are the constants of the file, ``axes`` the numbers of axes
    of its tensors where it says them."""

    def __init__(self, node: Any, known: dict[str, Any], axes: dict[str, int], opset: int) -> None:
        from onnx import helper

        self.node, self.known, self.made = node, known, list[Any]()
        self.axes, self.opset = axes, opset
        self.attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.name = str(node.output[0])

    def written(self) -> list[Any]:
        is_last = self.node.domain == "qonnx.custom_op.channels_last"
        if is_last and self.node.op_type in ("Conv", "MaxPool"):
            self.windows()
        elif self.node.op_type == "MultiThreshold":
            self.count_thresholds()
        elif self.node.op_type in ("Quant", "IntQuant"):
            self.quant()
        elif self.node.op_type == "BipolarQuant":
            self.bipolar()
        elif self.node.op_type == "Trunc":
            self.trunc()
        elif self.node.op_type == "FloatQuant":
            self.few_bits()
        elif self.node.domain == _MCT and self.node.op_type in _MCT_QUANTIZERS:
            self.up_to_threshold()
        else:
            raise ModelError(f"{self.node.op_type} {self.name!r} of QONNX is not known")
        return self.made

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.asarray(value, dtype=np.float32), "")
        return self.step("Constant", value=tensor)

    def step(self, op: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        from onnx import helper

        out = out or f"{self.name}/{len(self.made)}"
        self.made.append(helper.make_node(op, list(inputs), [out], **attrs))
        return out

    def number(self, place: int) -> float:
        value = self.known.get(self.node.input[place], np.zeros(0)).reshape(-1)
        if value.size != 1:
            raise ModelError(f"{self.name!r} is quantized in an unknown way")
        return float(value[0])

    def rounded(self, x: str, default: str) -> str:
        mode = self.attrs.get("rounding_mode", default.encode()).decode().upper()
        if mode in _PLAIN:
            return self.step(_PLAIN[mode], x)
        if mode not in _BY_SIZE:
            raise ModelError(f"{self.name!r} is rounded by {mode!r}, which is not known")
        size = self.step("Abs", x)
        if mode.startswith("HALF"):
            size = self.step("Add" if mode == "HALF_UP" else "Sub", size, self.constant(0.5))
        return self.step("Mul", self.step("Sign", x), self.step(_BY_SIZE[mode], size))

    def clipped(self, x: str, place: int) -> str:
        bits, narrow = self.number(place), int(bool(self.attrs.get("narrow", 0)))
        signed = bool(self.attrs.get("signed", 1))
        low = narrow - 2.0 ** (bits - 1) if signed else 0.0
        high = 2.0 ** (bits - 1) - 1 if signed else 2.0**bits - 1 - narrow
        return self.step("Clip", x, self.constant(low), self.constant(high))

    def quant(self) -> None:
        scale, zero = self.node.input[1], self.constant(self.number(2))
        ratio = self.step("Add", self.step("Div", self.node.input[0], scale), zero)
        whole = self.rounded(self.clipped(ratio, 3), "ROUND")
        self.step("Mul", self.step("Sub", whole, zero), scale, out=self.name)

    def trunc(self) -> None:
        x, scale, zero = self.node.input[0], self.node.input[1], self.number(2)
        ratio = self.step("Add", self.step("Div", x, scale), self.constant(zero))
        whole = self.step("Round", ratio)
        if len(self.node.input) < 6:
            power = 2.0 ** (self.number(3) - self.number(4))
            kept = self.rounded(self.step("Div", whole, self.constant(power)), "FLOOR")
            self.step("Mul", self.step("Sub", kept, self.constant(zero)), scale, out=self.name)
            return
        power = 2.0 ** np.rint(math.log2(self.number(4) / self.number(1)))
        kept = self.clipped(self.step("Div", whole, self.constant(power)), 5)
        moved = self.step("Sub", self.rounded(kept, "FLOOR"), self.constant(zero / power))
        self.step("Mul", moved, self.node.input[4], out=self.name)

    def up_to_threshold(self) -> None:
        """``s round(min(max(x, least), t - s) / s)`` with ``s`` a power of two times the threshold
        ``t``: of the result of a layer one number, of weights one for each of their channels."""
        bits, signed = int(self.attrs.get("num_bits", 0)), True
        limit: Any = np.zeros(0)
        if self.node.op_type.startswith("Weights"):
            limit = self.known.get(self.node.input[1], limit).astype(np.float32)
            weight = self.known.get(self.node.input[0])
            if weight is None or not limit.size:
                raise ModelError(f"{self.name!r} is a weight that is not known")
            if self.attrs.get("per_channel", 0):
                after = weight.ndim - 1 - int(self.attrs["channel_axis"]) % weight.ndim
                limit = limit.reshape(-1, *[1] * after)
        else:
            limit = np.float32(self.attrs.get("threshold", 0.0))
            signed = bool(self.attrs.get("signed", 0))
        if not 1 <= bits <= 16 or not np.all((limit > 0) & (limit < np.inf)):
            raise ModelError(f"{self.name!r} is quantized in an unknown way")
        unit = (limit / 2.0 ** (bits - 1 if signed else bits)).astype(np.float32)
        low = self.constant(-limit if signed else 0.0)
        above = self.step("Max", self.node.input[0], low)
        inside = self.step("Min", above, self.constant(limit - unit))
        whole = self.step("Round", self.step("Div", inside, self.constant(unit)))
        self.step("Mul", whole, self.constant(unit), out=self.name)

    def few_bits(self) -> None:
        """``sign(v) q(|v|)`` with ``v = x / s``: ``q`` goes up to ``2^(e + 1)`` in steps of
        ``2^(e - m)``, then from each power of two to the next in steps twice as wide."""
        bits, digits, bias, most = (self.number(k) for k in (2, 3, 4, 5))
        how = self.attrs.get("rounding_mode", b"ROUND").decode().upper()
        given = (how, int(self.attrs.get("signed", 1)), int(self.attrs.get("saturation", 1)))
        is_small = 1 <= bits <= 6 and 0 <= digits <= 20 and abs(bias) <= 64
        if given != ("ROUND", 1, 1) or not is_small or any(v % 1 for v in (bits, digits, bias)):
            raise ModelError(f"{self.name!r} is rounded to few bits in a way that is not known")
        most = min(most, 2.0 ** (2.0**bits - 1 - bias) * (2.0 - 2.0**-digits))
        ratio = self.step("Div", self.node.input[0], self.node.input[1])
        size, sum_, edge, power = self.step("Abs", ratio), "", 0.0, 1.0 - bias
        while edge < most:
            end = min(2.0 ** (power + 1), most)
            width = self.constant(2.0 ** (power - digits))
            inside = self.step("Max", size, self.constant(edge))
            inside = self.step("Min", inside, self.constant(end))
            part = self.step("Mul", self.step("Round", self.step("Div", inside, width)), width)
            part = self.step("Sub", part, self.constant(edge))
            sum_ = self.step("Add", sum_, part) if sum_ else part
            edge, power = end, power + 1
        if not sum_ or most % 2.0 ** (power - 1 - digits):
            raise ModelError(f"{self.name!r} ends at {most:g}, which it cannot hold")
        signed = self.step("Mul", self.step("Sign", ratio), sum_)
        self.step("Mul", signed, self.node.input[1], out=self.name)

    def bipolar(self) -> None:
        from onnx import TensorProto

        less = self.step("Less", self.node.input[0], self.constant(0.0))
        number = self.step("Cast", less, to=TensorProto.FLOAT)
        twice = self.step("Mul", number, self.constant(2.0))
        sign = self.step("Sub", self.constant(1.0), twice)
        self.step("Mul", sign, self.node.input[1], out=self.name)

    def windows(self) -> None:
        """All tensors have their channels last, weights behind the outputs."""
        axes = len(self.attrs["kernel_shape"])
        there, back = [0, axes + 1, *range(1, axes + 1)], [0, *range(2, axes + 2), 1]
        parts = (self.step("Transpose", name, perm=there) for name in self.node.input[:2])
        kept = {key: value for key, value in self.attrs.items() if key != "data_layout"}
        found = self.step(self.node.op_type, *parts, *self.node.input[2:], **kept)
        self.step("Transpose", found, out=self.name, perm=back)

    def count_thresholds(self) -> None:
        """``scale n + bias`` with ``n`` the number of thresholds ``t`` of a channel for which
        ``not x < t``."""
        from onnx import TensorProto

        x, limits = self.node.input[0], self.known.get(self.node.input[1], np.zeros(0))
        if limits.ndim != 2:
            raise ModelError(f"the thresholds of {self.name!r} are not known")
        if len(limits) > 1 and not self.attrs.get("data_layout", b"NCHW").endswith(b"C"):
            if x not in self.axes:
                raise ModelError(f"the shape of {x!r} is not declared")
            limits = limits.reshape(len(limits), *[1] * (self.axes[x] - 2), limits.shape[1])
        below = self.step("Less", self.last_axis("Unsqueeze", x), self.constant(limits))
        reached = self.step("Cast", self.step("Not", below), to=TensorProto.FLOAT)
        number = self.last_axis("ReduceSum", reached, keepdims=0)
        scale, bias = self.attrs.get("out_scale", 1.0), self.attrs.get("out_bias", 0.0)
        scaled = self.step("Mul", number, self.constant(scale))
        self.step("Add", scaled, self.constant(bias), out=self.name)

    def last_axis(self, op: str, x: str, **attrs: Any) -> str:
        from onnx import numpy_helper

        if self.opset < 13:
            return self.step(op, x, axes=[-1], **attrs)
        last = numpy_helper.from_array(np.array([-1], np.int64), "")
        return self.step(op, x, self.step("Constant", value=last), **attrs)
