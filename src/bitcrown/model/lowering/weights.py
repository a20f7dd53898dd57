"""Gemm, MatMul, Conv, ConvTranspose, BatchNormalization."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.fusion import carrying
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.merged_weights import is_moderate

_FARTHEST = 1 << 20
"""Largest stride, dilation or padding: what is beyond comes from a damaged file."""


@lowers("Gemm")
def gemm(b: Builder, node: OnnxNode) -> None:
    """``alpha A' B' + beta C`` where ``'`` may be a transposition."""
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    left, right = (
        _operand(b, node.inputs[i], bool(node.attrs.get(key, 0)))
        for i, key in enumerate(("transA", "transB"))
    )
    # (What is too large or too small for its product with a factor has that as a node of its own.)
    if isinstance(right, np.ndarray) and is_moderate(right, np.array(alpha)):
        right, alpha = right * alpha, 1.0
    elif isinstance(left, np.ndarray) and is_moderate(left, np.array(alpha)):
        left, alpha = left * alpha, 1.0
    addend = node.inputs[2] if len(node.inputs) > 2 else ""
    bias = b.constants[addend].astype(np.float64) if addend in b.constants else None
    bias = bias * beta if bias is not None and is_moderate(bias, np.array(beta)) else None
    if (
        bias is not None
        and alpha == 1.0
        and isinstance(left, str)
        and isinstance(right, np.ndarray)
        and (bias.ndim <= 1 or bias.shape[0] == 1)
    ):
        params = {
            "weight": right.T,
            "bias": np.broadcast_to(bias.reshape(-1), (right.shape[1],)).copy(),
        }
        b.bind(node, b.emit("Linear", (left,), params=params, name=node.outputs[0]))
        return
    value = multiplied(b, left, right)
    if alpha != 1.0:
        value = b.scaled(value, alpha, None)
    if bias is not None:
        value = b.scaled(value, None, bias)
    elif addend:
        value = b.binary("Add", value, b.scaled(b.node_of(addend), beta, None))
    b.bind(node, value)


def _operand(b: Builder, tensor: str, transposed: bool = False) -> str | np.ndarray:
    """A constant as it is, anything else as a node."""
    if b.is_constant(tensor):
        value = b.constants[tensor].astype(np.float64)
        return value.T if transposed else value
    name = b.node_of(tensor)
    return b.transposed(name, (1, 0)) if transposed else name


@lowers("MatMul")
def matmul(b: Builder, node: OnnxNode) -> None:
    b.bind(node, multiplied(b, _operand(b, node.inputs[0]), _operand(b, node.inputs[1])))


def multiplied(b: Builder, left: str | np.ndarray, right: str | np.ndarray) -> str:
    """``left @ right`` as numpy has it."""
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return b.known(left @ right)
    if isinstance(left, str) and isinstance(right, np.ndarray) and right.ndim <= 2:
        value = b.emit("Linear", (left,), params={"weight": np.atleast_2d(right.T)})
        return b.reshaped(value, b.shape(value)[:-1]) if right.ndim == 1 else value
    if isinstance(right, str) and isinstance(left, np.ndarray) and left.ndim <= 2:
        shape, matrix = b.shape(right), np.atleast_2d(left)
        if len(shape) == 1 or shape[-1] == 1:
            value = b.emit(
                "Linear", (b.reshaped(right, shape[:-1] or shape),), params={"weight": matrix}
            )
            target = (
                (*shape[:-2], matrix.shape[0], *shape[-1:])
                if len(shape) > 1
                else (matrix.shape[0],)
            )
            value = b.reshaped(value, target)
        else:
            value = b.emit("MatMulLeft", (right,), params={"matrix": matrix})
        if left.ndim == 1:
            axis = len(b.shape(value)) - (2 if len(shape) > 1 else 1)
            value = b.reshaped(
                value, [extent for i, extent in enumerate(b.shape(value)) if i != axis]
            )
        return value
    return _products(b, *(b.known(x) if isinstance(x, np.ndarray) else x for x in (left, right)))


def _products(b: Builder, x: str, y: str) -> str:
    """``sum_k x[.., i, k] y[.., k, j]`` as products and a sum: the only nonlinear operator is then
    ``Mul``."""
    ends = len(b.shape(x)) == 1, len(b.shape(y)) == 1
    x = b.reshaped(x, (1, *b.shape(x))) if ends[0] else x
    y = b.reshaped(y, (*b.shape(y), 1)) if ends[1] else y
    xs, ys = b.shape(x), b.shape(y)
    batch = np.broadcast_shapes(xs[:-2], ys[:-2])
    rows, inner, columns = xs[-2], xs[-1], ys[-1]
    turned = b.transposed(y, (*range(len(ys) - 2), len(ys) - 1, len(ys) - 2))
    full = (*batch, rows, columns, inner)
    a = b.expanded(b.reshaped(x, (*xs[:-2], rows, 1, inner)), full)
    c = b.expanded(b.reshaped(turned, (*ys[:-2], 1, columns, inner)), full)
    value = b.summed(b.binary("Mul", a, c), (len(full) - 1,), False)
    return b.reshaped(
        value, (*batch, *(() if ends[0] else (rows,)), *(() if ends[1] else (columns,)))
    )


def spatial_attributes(
    node: OnnxNode, rank: int, extents: tuple[int, ...], kernel: tuple[int, ...]
) -> dict[str, list[int]]:
    """Strides, dilations and pads (before every axis, then after) with ``auto_pad`` worked out."""
    strides = [int(value) for value in node.attrs.get("strides") or [1] * rank]
    dilations = [int(value) for value in node.attrs.get("dilations") or [1] * rank]
    pads = [int(value) for value in node.attrs.get("pads") or [0] * (2 * rank)]
    if not len(strides) == len(dilations) == len(extents) == rank or len(pads) != 2 * rank:
        raise ModelError(f"node {node.name!r}: strides, dilations or pads do not fit {rank} axes")
    if (
        min(strides + dilations, default=1) < 1
        or min(pads, default=0) < 0
        or max(strides + dilations + pads) > _FARTHEST
    ):
        raise ModelError(
            f"node {node.name!r}: strides {strides}, dilations {dilations} or pads {pads} are out "
            "of range"
        )
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ModelError(f"node {node.name!r}: auto_pad {auto!r} is not known")
    if auto == "VALID":
        pads = [0] * (2 * rank)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = []
        for axis in range(rank):
            out = -(-extents[axis] // strides[axis])
            totals.append(
                max(
                    0,
                    (out - 1) * strides[axis]
                    + dilations[axis] * (kernel[axis] - 1)
                    + 1
                    - extents[axis],
                )
            )
        pads = _shared(totals, auto)
    return {"strides": strides, "dilations": dilations, "pads": pads}


def _shared(totals: list[int], auto: str) -> list[int]:
    """Padding before and after, the odd entry where ``auto`` says."""
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return small + large if auto != "SAME_LOWER" else large + small


def padded(b: Builder, x: str, before: list[int], after: list[int]) -> str:
    """Pad the trailing axes of ``x`` with zeros."""
    if not any(before) and not any(after):
        return x
    lead = [0] * (len(b.shape(x)) - len(before))
    return b.emit("Pad", (x,), {"pads": (tuple(lead + before), tuple(lead + after)), "value": 0.0})


@lowers("Conv")
def conv(b: Builder, node: OnnxNode) -> None:
    weight = b.constant(node.inputs[1], "the weight").astype(np.float64)
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    known = b.constant(bias, "the bias").astype(np.float64) if bias else None
    convolved(b, node, b.node_of(node.inputs[0]), weight, known)


def convolved(
    b: Builder, node: OnnxNode, x: str, weight: np.ndarray, bias: np.ndarray | None
) -> None:
    """``node``, which has the attributes of a ``Conv``, as the convolution of ``x`` with
    ``weight``."""
    rank = weight.ndim - 2
    spatial = spatial_attributes(node, rank, b.shape(x)[2:], weight.shape[2:])
    before, after = spatial["pads"][:rank], spatial["pads"][rank:]
    if before != after:
        x, before = padded(b, x, before, after), [0] * rank
    params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    attrs = {**spatial, "pads": before, "group": int(node.attrs.get("group", 1))}
    b.bind(node, b.emit("Conv", (x,), attrs, params, name=node.outputs[0]))


@lowers("ConvTranspose")
def conv_transpose(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    weight = b.constant(node.inputs[1], "the weight").astype(np.float64)
    rank = weight.ndim - 2
    shape = b.shape(x)
    plain = OnnxNode(node.op, node.name, (), (), {**node.attrs, "auto_pad": "NOTSET"}, node.opset)
    spatial = spatial_attributes(plain, rank, shape[2:], weight.shape[2:])
    extra = [int(value) for value in node.attrs.get("output_padding") or [0] * rank]
    pads = _transposed_pads(node, spatial, extra, shape[2:], weight.shape[2:])
    before, after = pads[:rank], pads[rank:]
    even = before == after
    attrs = {**spatial, "pads": before if even else [0] * rank, "output_padding": extra}
    params = {"weight": weight}
    if len(node.inputs) > 2 and node.inputs[2]:
        params["bias"] = b.constant(node.inputs[2], "the bias").astype(np.float64)
    result = b.emit(
        "ConvTranspose",
        (x,),
        {**attrs, "group": int(node.attrs.get("group", 1))},
        params,
        node.outputs[0],
    )
    if not even:
        full = b.shape(result)
        cut = [(0, extent, 1) for extent in full[:2]]
        cut += [(before[i], full[2 + i] - after[i], 1) for i in range(rank)]
        result = b.emit("Slice", (result,), {"slices": tuple(cut)})
    b.bind(node, result)


def _transposed_pads(
    node: OnnxNode,
    spatial: dict[str, list[int]],
    extra: list[int],
    extents: tuple[int, ...],
    kernel: tuple[int, ...],
) -> list[int]:
    """What is cut from the full output: the pads, or what ``output_shape`` or ``auto_pad`` leave of
    it."""
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ModelError(f"node {node.name!r}: auto_pad {auto!r} is not known")
    target = node.attrs.get("output_shape")
    if auto == "VALID":
        return [0] * (2 * len(extents))
    if target is None and auto == "NOTSET":
        return spatial["pads"]
    totals = []
    for i, extent in enumerate(extents):
        wanted = (
            target[-len(extents) :][i] if target is not None else extent * spatial["strides"][i]
        )
        full = (
            spatial["strides"][i] * (extent - 1)
            + extra[i]
            + (kernel[i] - 1) * spatial["dilations"][i]
            + 1
        )
        totals.append(full - wanted)
    if min(totals) < 0:
        raise UnsupportedError(
            f"node {node.name!r}: ConvTranspose with an output larger than its kernel reaches"
        )
    return _shared(totals, "SAME_UPPER" if auto == "SAME_UPPER" else "SAME_LOWER")


@lowers("BatchNormalization")
def batch_normalization(b: Builder, node: OnnxNode) -> None:
    if node.attrs.get("training_mode", 0) or not node.attrs.get("spatial", 1):
        raise UnsupportedError(
            f"node {node.name!r} normalises by batch statistics: export the model for inference"
        )
    x = b.node_of(node.inputs[0])
    gain, shift, mean, variance = (
        b.constant(t, "a parameter").astype(np.float64) for t in node.inputs[1:5]
    )
    variance = variance + node.real("epsilon", 1e-5)
    if not (variance > 0).all():
        raise ModelError(f"node {node.name!r} normalises by a variance that is not positive")
    scale = gain / np.sqrt(variance)
    shape = (-1, *([1] * (len(b.shape(x)) - 2)))
    moved = mean * scale
    name = b.scaled(x, scale.reshape(shape), (shift - moved).reshape(shape))
    attrs = carrying({}, shift - moved, np.abs(shift) + np.abs(moved), 0.0)
    b.nodes[name] = replace(b.nodes[name], attrs=attrs)
    b.bind(node, name)
