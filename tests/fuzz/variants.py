"""Every operator of the reader with all its attributes: one node, against onnxruntime.

``variants()`` gives some 900 of them, products of attributes where those are independent. Each is
a file of one node (and a ``Cast`` behind it, where it computes no floats). Nothing here is random:
the fuzzer's generators draw, this list covers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_LOW, _FEW = -0.3, 4


class Variant(NamedTuple):
    """A tuple of ``operands`` is the shape of an input, an array a weight, None one left out."""

    op: str
    operands: tuple[Any, ...]
    attrs: dict[str, Any]
    opset: int
    outputs: int
    asked: int
    """Number of the output that is looked at."""
    is_float: bool
    low: float
    """Inputs are looked at in ``[low, low + 0.75]``."""

    def __str__(self) -> str:
        shapes = [_said(operand) for operand in self.operands]
        attrs = [f"{key}={value}" for key, value in self.attrs.items()]
        asked = [f"output{self.asked}"] if self.outputs > 1 else []
        asked += [f"from{self.low}"] if self.low != _LOW else []
        return ",".join([f"{self.op}{self.opset}", *shapes, *attrs, *asked]).replace(" ", "")


def _said(operand: Any) -> str:
    if operand is None:
        return "-"
    if isinstance(operand, tuple):
        return "x".join(map(str, operand)) or "s"
    if (
        operand.ndim == 0
        or operand.size <= _FEW
        and bool((operand == np.round(operand.astype(float), 1)).all())
    ):
        return f"c{operand.tolist()}".replace(",", ";")
    return "c" + "x".join(map(str, operand.shape))


def of(
    op: str,
    *operands: Any,
    opset: int = 17,
    outputs: int = 1,
    asked: int = 0,
    is_float: bool = True,
    low: float = _LOW,
    **attrs: Any,
) -> Variant:
    return Variant(op, operands, attrs, opset, outputs, asked, is_float, low)


def model_of(variant: Variant) -> onnx.ModelProto:
    """The file of a variant; inputs ``t0 ...``, output ``y``."""
    names, inputs, constants = [], [], []
    for place, operand in enumerate(variant.operands):
        name = "" if operand is None else f"t{place}"
        names.append(name)
        if isinstance(operand, tuple):
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, operand))
        elif operand is not None:
            constants.append(numpy_helper.from_array(operand, name))
    outputs = [f"o{k}" for k in range(variant.outputs)]
    nodes = [helper.make_node(variant.op, names, outputs, name="only", **variant.attrs)]
    last = outputs[variant.asked]
    if variant.is_float:
        nodes[0].output[variant.asked] = "y"
    else:
        nodes.append(helper.make_node("Cast", [last], ["y"], to=TensorProto.FLOAT))
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "variant", inputs, [end], initializer=constants)
    opsets = [helper.make_opsetid("", variant.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def whole(value: int) -> np.ndarray:
    return np.array(value, dtype=np.int64)


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def number(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def variants() -> list[Variant]:
    """All of them."""
    parts = (_unary, _arithmetic, _reductions, _windows, _pools, _resizes, _moves, _choices)
    return [variant for part in (*parts, _products, _normalisations) for variant in part()]


def _unary() -> Iterator[Variant]:
    anywhere = (
        *("Abs", "Neg", "Relu", "Sigmoid", "Tanh", "Exp", "Sin", "Cos", "Atan", "Erf", "Softplus"),
        *("Softsign", "HardSwish", "Sign", "Floor", "Ceil", "Round", "Identity", "Dropout"),
    )
    for op, shape, opset in product(anywhere, ((2, 3), ()), (14, 21)):
        yield of(op, shape, opset=opset)
    for op, opset in product(("Log", "Sqrt", "Reciprocal"), (13, 21)):
        yield of(op, (2, 3), opset=opset, low=0.4)
    for op, alpha in product(("Elu", "Celu", "LeakyRelu"), (0.05, 0.5, 1.0, 2.0)):
        yield of(op, (2, 3), alpha=alpha)
    for alpha, gamma in product((0.3, 1.7), (0.5, 1.05)):
        yield of("Selu", (2, 3), alpha=alpha, gamma=gamma)
        yield of("HardSigmoid", (2, 3), alpha=alpha, beta=gamma / 2)
    for lambd, bias in product((0.0, 0.1, 0.5), (0.0, 0.1, 0.7)):
        yield of("Shrink", (2, 3), lambd=lambd, bias=bias)
    yield from (of("Mish", (2, 3), opset=opset) for opset in (18, 22))
    yield from (of("Gelu", (2, 3), opset=20, approximate=kind) for kind in ("none", "tanh"))
    for slope in (f32(0.2), weight(3), weight(2, 1), weight(2, 3)):
        yield of("PRelu", (2, 3), slope)
    for low, high in product((None, number(-0.1)), (None, number(0.2))):
        yield of(
            "Clip",
            (2, 3),
            *((low, high) if high is not None else (low,) if low is not None else ()),
        )
    yield of("Clip", (2, 3), opset=7, min=-0.1, max=0.2)
    for kind in (TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64):
        yield of("Cast", (2, 3), to=kind, is_float=False)
    yield of("Cast", (2, 3), to=TensorProto.BOOL, is_float=False)


def _arithmetic() -> Iterator[Variant]:
    shapes = (((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (4, 2, 3)), ((2, 3), ()), ((1, 3), (2, 1)))
    for op, (left, right) in product(("Add", "Sub", "Mul", "Div", "Max", "Min"), shapes):
        yield of(op, left, right, low=0.4)
        yield of(op, left, np.asarray(np.abs(weight(*right)) + 0.5))
        yield of(op, np.asarray(np.abs(weight(*left)) + 0.5), right, low=0.4)
    for op, count in product(("Max", "Min", "Sum", "Mean"), (1, 2, 3, 4)):
        yield of(op, *(((2, 3), (2, 3), (1, 3), weight(2, 1))[:count]))
    for exponent in (0.0, 1.0, 2.0, 3.0, 4.0, 7.0):
        yield of("Pow", (2, 3), number(exponent))
    for exponent in (0.5, -1.0, -2.0, 1.5, 2.7, -0.3):
        yield of("Pow", (2, 3), number(exponent), low=0.4)
    for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"):
        yield of(op, (2, 3), (3,), is_float=False)
        yield of(op, (2, 3), number(0.1), is_float=False)
        yield of(op, weight(3), (2, 3), is_float=False)
    for kind in ("IsNaN", "IsInf"):
        yield of(kind, (2, 3), is_float=False)
    for condition in (np.array([True, False, True]), np.array([[True], [False]])):
        yield of("Where", condition, (2, 3), (2, 3))
        yield of("Where", condition, (2, 3), number(0.5))
        yield of("Where", condition, weight(3), (2, 1))


def _reductions() -> Iterator[Variant]:
    sums = ("Sum", "Mean", "Max", "Min", "SumSquare", "L1", "L2", "LogSumExp", "LogSum", "Prod")
    for kind, axes, keep in product(sums, (None, [1], [-1, 0], [0, 1, 2]), (0, 1)):
        op, low = f"Reduce{kind}", 0.2 if kind == "LogSum" else -0.3
        given = {} if axes is None else {"axes": axes}
        if kind != "Sum":
            yield of(op, (2, 3, 2), opset=13, keepdims=keep, low=low, **given)
        axes_input = () if axes is None else (ints(*axes),)
        yield of(op, (2, 3, 2), *axes_input, opset=18, keepdims=keep, low=low)
    for kind in sums:
        yield of(f"Reduce{kind}", (2, 3), ints(), opset=18, noop_with_empty_axes=1, low=0.2)
    for op, axis in product(("Softmax", "LogSoftmax"), (-1, 0, 1)):
        yield of(op, (2, 3, 2), axis=axis)
        yield of(op, (2, 3, 2), axis=axis, opset=11)
    for axis, exclusive, reverse in product((0, -1), (0, 1), (0, 1)):
        yield of("CumSum", (2, 4), whole(axis), exclusive=exclusive, reverse=reverse)


def _windows() -> Iterator[Variant]:
    image = (1, 2, 6, 5)
    for stride, dilation, pads in product((1, 2), (1, 2), ([0] * 4, [1, 0, 1, 2])):
        attrs = {"strides": [stride, 1], "dilations": [1, dilation], "pads": pads}
        yield of("Conv", image, weight(4, 2, 3, 2), weight(4), **attrs)
        yield of("Conv", image, weight(4, 1, 2, 2), group=2, **attrs)
        yield of("ConvTranspose", image, weight(2, 3, 3, 2), weight(3), **attrs)
        yield of("ConvTranspose", image, weight(2, 2, 2, 2), group=2, **attrs)
    for auto, stride, kernel in product(("SAME_UPPER", "SAME_LOWER", "VALID"), (1, 2), (2, 3)):
        attrs = {"auto_pad": auto, "strides": [stride, stride]}
        yield of("Conv", image, weight(3, 2, kernel, kernel), **attrs)
        yield of("ConvTranspose", image, weight(2, 3, kernel, kernel), **attrs)
    for extra in ([1, 0], [0, 1], [1, 1]):
        yield of("ConvTranspose", image, weight(2, 3, 3, 3), strides=[2, 2], output_padding=extra)
    yield of("ConvTranspose", image, weight(2, 3, 3, 3), strides=[2, 2], output_shape=[12, 10])
    yield of("Conv", (2, 2, 7), weight(4, 2, 3), strides=[2], pads=[1, 1])
    yield of("Conv", (1, 2, 3, 4, 4), weight(3, 2, 2, 2, 3), pads=[1, 0, 1, 0, 1, 1])
    yield of("ConvTranspose", (1, 2, 5), weight(2, 3, 3), dilations=[2])
    yield of("ConvTranspose", (1, 2, 2, 3, 2), weight(2, 3, 2, 2, 2), strides=[2, 1, 2])


def _pools() -> Iterator[Variant]:
    image = (1, 2, 6, 7)
    edges = ({}, {"pads": [1, 0, 1, 1]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"})
    for edge, stride, ceil in product((*edges, {"auto_pad": "VALID"}), (1, 2, 3), (0, 1)):
        attrs = {"kernel_shape": [3, 2], "strides": [stride, 2], "ceil_mode": ceil, **edge}
        yield of("MaxPool", image, opset=22, **attrs)
        for counts in (0, 1):
            yield of("AveragePool", image, opset=22, count_include_pad=counts, **attrs)
    for dilation in ([2, 1], [1, 3]):
        yield of("MaxPool", image, kernel_shape=[2, 2], dilations=dilation)
        yield of("AveragePool", image, opset=19, kernel_shape=[2, 2], dilations=dilation)
    for op, (shape, kernel) in product(
        ("MaxPool", "AveragePool"), (((1, 2, 7), [3]), ((1, 1, 4, 4, 4), [2, 2, 3]))
    ):
        yield of(op, shape, kernel_shape=kernel)
    for op, shape in product(
        ("GlobalMaxPool", "GlobalAveragePool"), ((1, 2, 5), image, (1, 2, 3, 2, 2))
    ):
        yield of(op, shape)


def _resizes() -> Iterator[Variant]:
    image = (1, 1, 4, 5)
    rules = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    for mode, rule, factors in product(
        ("nearest", "linear", "cubic"), rules, ((2, 1.5), (0.5, 0.7))
    ):
        yield of(
            *("Resize", image, None, f32(1, 1, *factors)),
            mode=mode,
            coordinate_transformation_mode=rule,
        )
    for mode, opset in product(("nearest", "linear", "cubic"), (11, 13, 18, 19)):
        roi = f32() if opset == 11 else None
        scales = f32() if opset == 11 else None
        yield of("Resize", image, roi, scales, ints(1, 1, 7, 3), mode=mode, opset=opset)
    for rounding, rule in product(
        ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"), ("half_pixel", "asymmetric")
    ):
        attrs = {"nearest_mode": rounding, "coordinate_transformation_mode": rule}
        yield of("Resize", image, None, f32(1, 1, 0.6, 1.5), **attrs)
    for coefficient, outside in product((-0.5, -0.75), (0, 1)):
        attrs = {"cubic_coeff_a": coefficient, "exclude_outside": outside}
        yield of("Resize", image, None, f32(1, 1, 2, 1.5), mode="cubic", **attrs)
    yield of("Resize", image, None, f32(2, 1.5), mode="linear", axes=[2, 3], opset=18)
    yield of("Resize", image, None, f32(1, 1, 0.5, 0.6), mode="linear", antialias=1, opset=18)
    for policy in ("stretch", "not_larger", "not_smaller"):
        attrs = {"keep_aspect_ratio_policy": policy, "axes": [2, 3]}
        yield of("Resize", image, None, None, ints(6, 6), mode="linear", opset=18, **attrs)
    for mode in ("nearest", "linear"):
        yield of("Upsample", image, f32(1, 1, 2, 3), opset=9, mode=mode)


def _moves() -> Iterator[Variant]:
    for mode, pads in product(
        ("constant", "reflect", "edge", "wrap"), ((1, 2, 0, 3), (0, 1, 2, 0))
    ):
        yield of("Pad", (3, 4), ints(*pads), opset=19, mode=mode)
    yield of("Pad", (3, 4), ints(1, -1, 0, 2), number(0.4))
    yield of("Pad", (3, 4), ints(1, 2), None, ints(-1), opset=18)
    for start, stop, step in product((0, 1, -2, 9), (2, -1, 100, -100), (1, 2, -1, -3)):
        if len(range(6)[start:stop:step]):
            yield of("Slice", (2, 6), ints(start), ints(stop), ints(1), ints(step))
    for axis, indices in product((0, 1, -1), (whole(1), ints(1, 0, -1), np.array([[0, 1]]))):
        yield of("Gather", (3, 4, 2), indices, axis=axis)
    for sizes, axis in (((1, 3), 0), ((2, 1, 2), -1)):
        for asked in range(len(sizes)):
            shape = (sum(sizes), 2) if axis == 0 else (2, sum(sizes))
            yield of("Split", shape, ints(*sizes), axis=axis, outputs=len(sizes), asked=asked)
    yield of("Split", (5, 2), opset=18, num_outputs=3, outputs=3, asked=2)
    for axis in (0, 1, -1):
        yield of("Concat", (2, 3), weight(2, 3), (2, 3), axis=axis)
    for perm in ([0, 2, 1], [2, 1, 0], [1, 2, 0]):
        yield of("Transpose", (2, 3, 4), perm=perm)
    for shape in ((0, -1), (4, 6), (-1,), (2, 0, 2, 2)):
        yield of("Reshape", (2, 3, 4), ints(*shape))
    for axis in (0, 1, 2, 3, -1):
        yield of("Flatten", (2, 3, 4), axis=axis)
    yield of("Squeeze", (1, 3, 1))
    yield from (of("Squeeze", (1, 3, 1), ints(axis)) for axis in (0, -1))
    yield from (of("Unsqueeze", (2, 3), ints(*axes)) for axes in ((0,), (-1, 1), (3, 0)))
    yield from (of("Expand", (3, 1), ints(*shape)) for shape in ((3, 4), (2, 1, 5), (1,)))
    for batch, time, lengths in ((1, 0, (4, 2)), (0, 1, (1, 2, 0, 2)), (1, 2, (3, 3))):
        attrs = {"batch_axis": batch, "time_axis": time}
        yield of("ReverseSequence", (4, 2, 3), ints(*lengths), **attrs)
    yield from (of("Tile", (2, 3), ints(*times)) for times in ((2, 1), (3, 2)))
    for upper, diagonal in product((0, 1), (-2, 0, 1)):
        yield of("Trilu", (3, 4), whole(diagonal), upper=upper)
    yield from (of("DepthToSpace", (1, 8, 2, 3), blocksize=2, mode=m) for m in ("DCR", "CRD"))
    yield of("SpaceToDepth", (1, 2, 4, 6), blocksize=2)
    for axis in (0, 1):
        yield of("GatherElements", (3, 4), np.array([[0, 2, 1], [-1, 0, 0]]), axis=axis)
        for reduction in ("none", "add"):
            places = np.array([[0, 1]]) if axis == 1 else np.array([[0, 2, 1]])
            updates = tuple(places.shape)
            attrs = {"axis": axis, "reduction": reduction}
            yield of("ScatterElements", (3, 4), places, updates, opset=18, **attrs)
    yield from (
        of("ScatterND", (3, 4), np.array([[0], [2]]), (2, 4), opset=18, reduction=kind)
        for kind in ("none", "add")
    )
    yield of("GatherND", (2, 3, 4), np.array([[0, 1], [1, -1]]))
    yield of("GatherND", (2, 3, 4), np.array([[[0]], [[2]]]), batch_dims=1)


def _choices() -> Iterator[Variant]:
    for op, axis, keep, last in product(("ArgMax", "ArgMin"), (0, 1, -1), (0, 1), (0, 1)):
        attrs = {"axis": axis, "keepdims": keep, "select_last_index": last}
        yield of(op, (2, 3, 2), is_float=False, **attrs)
    for k, largest, axis in product((1, 2, 4), (0, 1), (0, -1)):
        yield of("TopK", (4, 4), ints(k), outputs=2, largest=largest, axis=axis)
    yield of("TopK", (2, 4), ints(2), outputs=2, asked=1, is_float=False)
    for axis, opset in product((0, 1, -1), (11, 13)):
        yield of("Hardmax", (2, 3), axis=axis, opset=opset)


def _products() -> Iterator[Variant]:
    for left, right, factors in product((0, 1), (0, 1), ((1.0, 1.0), (0.5, 2.0))):
        attrs = {"transA": left, "transB": right, "alpha": factors[0], "beta": factors[1]}
        a, b = (3, 2) if left else (2, 3), (4, 3) if right else (3, 4)
        yield of("Gemm", a, weight(*b), weight(4), **attrs)
        yield of("Gemm", a, b, (2, 1), **attrs)
        yield of("Gemm", weight(*a), b, **attrs)
    shapes = (((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((2, 3), (3,)), ((3,), (3, 4)), ((3,), (3,)))
    for a, b in (*shapes, ((2, 3), (5, 3, 1)), ((2, 1, 2, 3), (4, 3, 2))):
        yield of("MatMul", a, weight(*b))
        yield of("MatMul", weight(*a), b)
        yield of("MatMul", a, b)
    for equation in ("ij,jk->ik", "ij,jk", "ij,kj->ik", "ij,ij->i", "ij,ij->", "ij,jk->ki"):
        square = (3, 3)
        yield of("Einsum", square, weight(*square), equation=equation)
        yield of("Einsum", square, square, equation=equation)
    yield of("Einsum", (2, 3, 4), (2, 4, 2), equation="bij,bjk->bik")
    yield of("Einsum", (3, 4), equation="ij->ji")


def _normalisations() -> Iterator[Variant]:
    for axis, epsilon in product((1, 2, -1), (1e-5, 0.1)):
        shape = (2, 3, 4)[axis:] if axis > 0 else (4,)
        scale, shift = weight(*shape), weight(*shape, seed=1)
        attrs = {"axis": axis, "epsilon": epsilon}
        yield of("LayerNormalization", (2, 3, 4), scale, shift, **attrs)
        yield of("LayerNormalization", (2, 3, 4), scale, **attrs)
    for groups in (1, 2, 4):
        yield of(
            *("GroupNormalization", (1, 4, 3), weight(4), weight(4, seed=1)),
            opset=21,
            num_groups=groups,
        )
    yield of("GroupNormalization", (1, 4, 3), weight(2), weight(2), opset=18, num_groups=2)
    yield of("InstanceNormalization", (1, 2, 3, 3), weight(2), weight(2, seed=1), epsilon=0.01)
    for axis, p in product((0, -1), (1, 2)):
        yield of("LpNormalization", (2, 3), axis=axis, p=p, low=0.2)
    mean, variance = weight(2, seed=2), np.abs(weight(2, seed=3)) + 0.5
    for shape, epsilon in product(((1, 2, 3, 3), (3, 2), (1, 2, 4)), (1e-5, 0.1)):
        yield of(
            *("BatchNormalization", shape, weight(2), weight(2, seed=1), mean, variance),
            epsilon=epsilon,
        )
    yield of("MeanVarianceNormalization", (1, 2, 2, 3))
    yield of("MeanVarianceNormalization", (1, 2, 2, 3), axes=[2, 3])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}
    for (op, count), direction in product(gates.items(), ("forward", "reverse", "bidirectional")):
        turns = 2 if direction == "bidirectional" else 1
        weights = weight(turns, 2 * count, 2), weight(turns, 2 * count, 2, seed=1)
        bias = weight(turns, 4 * count, seed=2)
        kinds = [{}, {"linear_before_reset": 1}] if op == "GRU" else [{}]
        if op == "RNN":
            kinds += [{"activations": [name] * turns} for name in ("Relu", "Sigmoid")]
        for kind, asked, given in product(kinds, (0, 1), ((), (bias,))):
            attrs = {"hidden_size": 2, "direction": direction, **kind}
            outputs = 3 if op == "LSTM" else 2
            yield of(op, (2, 1, 2), *weights, *given, outputs=outputs, asked=asked, **attrs)
