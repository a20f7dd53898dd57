"""Gemm, MatMul, Conv, ConvTranspose, BatchNormalization."""

from __future__ import annotations

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers


@lowers("Gemm")
def gemm(b: Builder, node: OnnxNode) -> None:
    a, w = node.inputs[:2]
    if b.is_constant(a) or not b.is_constant(w):
        raise UnsupportedError(f"node {node.name!r}: Gemm needs a constant second operand")
    x = b.node_of(a)
    if node.attrs.get("transA", 0):
        x = b.emit("Transpose", (x,), {"perm": (1, 0)})
    weight = b.constants[w].astype(np.float64)
    weight = weight if node.attrs.get("transB", 0) else weight.T
    params = {"weight": weight * float(node.attrs.get("alpha", 1.0))}
    addend = node.inputs[2] if len(node.inputs) > 2 else ""
    if addend and b.is_constant(addend):
        bias = b.constants[addend].astype(np.float64) * float(node.attrs.get("beta", 1.0))
        if bias.ndim <= 1 or bias.shape[0] == 1:
            params["bias"] = np.broadcast_to(bias.reshape(-1), (weight.shape[0],)).copy()
            addend = ""
    result = b.emit("Linear", (x,), params=params, name=node.outputs[0])
    if addend:
        scaled = b.scaled(b.node_of(addend), float(node.attrs.get("beta", 1.0)), None)
        result = b.binary("Add", result, scaled)
    b.bind(node, result)


@lowers("MatMul")
def matmul(b: Builder, node: OnnxNode) -> None:
    left, right = node.inputs
    if b.is_constant(right) and b.constants[right].ndim <= 2:
        weight = b.constants[right].astype(np.float64)
        vector = weight.ndim == 1
        value = b.emit("Linear", (b.node_of(left),), params={"weight": np.atleast_2d(weight) if vector else weight.T})
        b.bind(node, b.reshaped(value, b.shape(value)[:-1]) if vector else value)
    elif b.is_constant(left) and b.constants[left].ndim == 2:
        matrix, x = b.constants[left].astype(np.float64), b.node_of(right)
        if len(b.shape(x)) == 1:
            b.bind(node, b.emit("Linear", (x,), params={"weight": matrix}))
        else:
            b.bind(node, b.emit("MatMulLeft", (x,), params={"matrix": matrix}))
    else:
        b.bind(node, matmul_of_nodes(b, b.node_of(left), b.node_of(right)))


def matmul_of_nodes(b: Builder, x: str, y: str) -> str:
    """``sum_k x[.., i, k] y[.., k, j]`` as products and a sum: the only nonlinear operator is then ``Mul``."""
    xs, ys = b.shape(x), b.shape(y)
    if len(xs) < 2 or len(ys) < 2:
        raise UnsupportedError("MatMul of two vectors that both depend on the input")
    batch = np.broadcast_shapes(xs[:-2], ys[:-2])
    rows, inner, columns = xs[-2], xs[-1], ys[-1]
    transposed = b.emit("Transpose", (y,), {"perm": (*range(len(ys) - 2), len(ys) - 1, len(ys) - 2)})
    full = (*batch, rows, columns, inner)
    a = b.expanded(b.reshaped(x, (*xs[:-2], rows, 1, inner)), full)
    c = b.expanded(b.reshaped(transposed, (*ys[:-2], 1, columns, inner)), full)
    return b.emit("ReduceSum", (b.emit("Mul", (a, c)),), {"axes": (len(full) - 1,), "keepdims": False})


def _spatial(node: OnnxNode, rank: int, extents: tuple[int, ...], kernel: tuple[int, ...]) -> dict[str, list[int]]:
    strides = list(node.attrs.get("strides", [1] * rank))
    dilations = list(node.attrs.get("dilations", [1] * rank))
    pads = list(node.attrs.get("pads", [0] * (2 * rank)))
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for axis in range(rank):
            out = -(-extents[axis] // strides[axis])
            total = max(0, (out - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 - extents[axis])
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
        pads = before + after
    return {"strides": strides, "dilations": dilations, "pads": pads}


def padded(b: Builder, x: str, before: list[int], after: list[int], value: float = 0.0) -> str:
    """Pad the trailing axes of ``x``."""
    lead = [0] * (len(b.shape(x)) - len(before))
    return b.emit("Pad", (x,), {"pads": (tuple(lead + before), tuple(lead + after)), "value": value})


@lowers("Conv")
def conv(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    weight = b.constant(node.inputs[1], "the weight").astype(np.float64)
    rank = weight.ndim - 2
    spatial = _spatial(node, rank, b.shape(x)[2:], weight.shape[2:])
    before, after = spatial["pads"][:rank], spatial["pads"][rank:]
    if before != after:
        x, before = padded(b, x, before, after), [0] * rank
    params = {"weight": weight}
    if len(node.inputs) > 2 and node.inputs[2]:
        params["bias"] = b.constant(node.inputs[2], "the bias").astype(np.float64)
    attrs = {**spatial, "pads": before, "group": int(node.attrs.get("group", 1))}
    b.bind(node, b.emit("Conv", (x,), attrs, params, name=node.outputs[0]))


@lowers("ConvTranspose")
def conv_transpose(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    weight = b.constant(node.inputs[1], "the weight").astype(np.float64)
    rank = weight.ndim - 2
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in node.attrs:
        raise UnsupportedError(f"node {node.name!r}: ConvTranspose with auto_pad or output_shape")
    spatial = _spatial(node, rank, b.shape(x)[2:], weight.shape[2:])
    before, after = spatial["pads"][:rank], spatial["pads"][rank:]
    attrs = {
        **spatial,
        "pads": before if before == after else [0] * rank,
        "group": int(node.attrs.get("group", 1)),
        "output_padding": list(node.attrs.get("output_padding", [0] * rank)),
    }
    params = {"weight": weight}
    if len(node.inputs) > 2 and node.inputs[2]:
        params["bias"] = b.constant(node.inputs[2], "the bias").astype(np.float64)
    result = b.emit("ConvTranspose", (x,), attrs, params, name=node.outputs[0])
    if before != after:
        shape = b.shape(result)
        cut = [(0, extent, 1) for extent in shape[:2]]
        cut += [(before[i], shape[2 + i] - after[i], 1) for i in range(rank)]
        result = b.emit("Slice", (result,), {"slices": tuple(cut)})
    b.bind(node, result)


@lowers("BatchNormalization")
def batch_normalization(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    gain, shift, mean, variance = (b.constant(t, "a parameter").astype(np.float64) for t in node.inputs[1:5])
    scale = gain / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    shape = (-1, *([1] * (len(b.shape(x)) - 2)))
    b.bind(node, b.scaled(x, scale.reshape(shape), (shift - mean * scale).reshape(shape)))
