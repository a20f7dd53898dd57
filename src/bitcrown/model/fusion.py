"""Pairs of neighbouring nodes that are one node: the rules that ``passes`` applies.

The merged node has the name of the second; the first stays in the graph and is dropped later if
nothing else reads it, so a rule can do no harm. Where keeping both would be work done twice, the
source must have one reader.

Offsets that are merged may cancel, and what is left of two large ones is off by a rounding of
those. So a merged node says how much larger they were (the attribute ``carried``), and bounds count
the rounding of that (``Network.offset_size``). Weights that cancel are computed exactly
(``merged_weights``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bitcrown.model.graph import Node
from bitcrown.model.merged_weights import is_moderate, product_of_weights

_Array = np.ndarray[Any, Any]


def fused(
    node: Node, nodes: Mapping[str, Node], readers: Mapping[str, int]
) -> str | tuple[Node, ...]:
    """``node`` merged with its source where a rule applies."""
    if len(node.inputs) != 1:
        return node.inputs[0] if node.op == "Concat" and not node.inputs[1:] else (node,)
    source = nodes[node.inputs[0]]
    if node.rounding is not None or source.rounding is not None:
        return (node,)
    if _is_identity(node, source):
        return source.name
    alone = readers[source.name] == 1
    merged: tuple[Node, ...] | None = None
    if node.op == "Scale":
        merged = _scale_after(source, node) if alone else None
    elif node.op in ("Linear", "Conv"):
        merged = _weights_after(source, node, nodes, readers)
    elif node.op == "Reshape" and source.op == "Reshape":
        merged = (replace(node, inputs=source.inputs),)
    elif node.op == "Transpose":
        merged = _transpose_after(source, node)
    elif node.op == "Slice" and source.op == "Slice":
        merged = (
            replace(node, inputs=source.inputs, attrs={"slices": _slices_after(source, node)}),
        )
    elif node.op == "Expand" and source.op == "Expand" and len(source.shape) == len(node.shape):
        merged = (replace(node, inputs=source.inputs),)
    return merged or (node,)


def carried_by(node: Node) -> float:
    """How much larger than a node's offset the numbers were that it is a sum of."""
    return float(node.attrs.get("carried", 0.0))


def carrying(
    attrs: Mapping[str, Any], offset: _Array, sizes: _Array, before: float
) -> dict[str, Any]:
    """``attrs`` of a node whose ``offset`` is a sum of numbers with absolute values that add up to
    ``sizes``, ``before`` more of which were carried."""
    excess = float(np.max(sizes - np.abs(offset), initial=0.0)) + before
    rest = {key: value for key, value in attrs.items() if key != "carried"}
    return {**rest, "carried": excess} if excess > 0 else rest


def offset_of(node: Node) -> _Array:
    """The offset of a ``Linear``, ``Conv``, ``ConvTranspose`` or ``Scale``."""
    key = "shift" if node.op == "Scale" else "bias"
    return np.asarray(node.params.get(key, np.zeros(())))


def largest_row(weight: _Array) -> float:
    """The largest sum of absolute weights of an output."""
    rows = np.abs(weight).reshape(len(weight), -1)
    return float(rows.sum(axis=1).max(initial=0.0))


def _is_identity(node: Node, source: Node) -> bool:
    if node.shape != source.shape:
        return False
    if node.op == "Transpose":
        return tuple(node.attrs["perm"]) == tuple(range(len(node.shape)))
    if node.op == "Slice":
        return all(step == 1 for _, _, step in node.attrs["slices"])
    if node.op == "Pad":
        return not any(node.attrs["pads"][0]) and not any(node.attrs["pads"][1])
    if node.op == "Scale":
        is_one = bool(np.all(node.params.get("scale", 1.0) == 1.0))
        return is_one and not np.any(node.params.get("shift", 0.0)) and "carried" not in node.attrs
    return node.op in ("Reshape", "Expand") or (node.op == "Relu" and source.op == "Relu")


def _transpose_after(source: Node, node: Node) -> tuple[Node, ...] | None:
    perm = node.attrs["perm"]
    if source.op == "Transpose":
        first = source.attrs["perm"]
        return (
            replace(
                node, inputs=source.inputs, attrs={"perm": tuple(first[axis] for axis in perm)}
            ),
        )
    moved = [axis for axis in perm if source.shape[axis] != 1]
    if moved == sorted(moved):
        return (replace(node, op="Reshape", attrs={"shape": node.shape}),)
    return None


def _slices_after(source: Node, node: Node) -> tuple[tuple[int, int, int], ...]:
    """Entry ``i`` of the second is entry ``start + i step`` of the first."""
    result = []
    for (first, _, stride), (start, _, step), extent in zip(
        source.attrs["slices"], node.attrs["slices"], node.shape, strict=True
    ):
        begin = first + start * stride
        result.append((begin, begin + max(0, (extent - 1) * stride * step + 1), stride * step))
    return tuple(result)


def _along_axis(value: _Array, shape: tuple[int, ...], axis: int) -> _Array | None:
    """``value`` broadcast to ``shape`` as ``[extent]`` if it varies along ``axis`` only."""
    lifted = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
    rows = np.moveaxis(lifted, axis, -1).reshape(-1, lifted.shape[axis])
    if rows.shape[0] == 0 or not np.all(rows == rows[:1]):
        return None
    return np.broadcast_to(rows[0], (shape[axis],))


def _gain_and_shift(scale: Node, shape: tuple[int, ...], axis: int) -> tuple[_Array, _Array] | None:
    gain = _along_axis(np.asarray(scale.params.get("scale", np.ones(()))), shape, axis)
    shift = _along_axis(np.asarray(scale.params.get("shift", np.zeros(()))), shape, axis)
    return None if gain is None or shift is None else (gain, shift)


def _scale_after(source: Node, scale: Node) -> tuple[Node, ...] | None:
    """``Scale`` into the ``Linear``, ``Conv``, ``ConvTranspose`` or ``Scale`` before it."""
    if not is_moderate(*scale.params.values(), *source.params.values()):
        return None
    if source.op == "Scale":
        gain, shift = (
            scale.params.get(key, np.full((), value))
            for key, value in (("scale", 1.0), ("shift", 0.0))
        )
        params = {
            "scale": source.params.get("scale", np.ones(())) * gain,
            "shift": source.params.get("shift", np.zeros(())) * gain + shift,
        }
        sizes = np.abs(offset_of(source) * gain) + np.abs(shift)
        before = float(np.abs(gain).max(initial=0.0)) * carried_by(source) + carried_by(scale)
        attrs = carrying(scale.attrs, params["shift"], sizes, before)
        return (replace(scale, inputs=source.inputs, params=params, attrs=attrs),)
    rank = len(source.shape)
    axis = {"Linear": rank - 1, "Conv": 1, "ConvTranspose": 1}.get(source.op)
    if axis is None or (source.op == "ConvTranspose" and source.attrs["group"] != 1):
        return None
    found = _gain_and_shift(scale, source.shape, axis)
    if found is None:
        return None
    gain, shift = found
    # gain (W x + b) + shift = (gain W) x + (gain b + shift); a transposed convolution keeps its
    # output channels on the second axis of the weight.
    weight = source.params["weight"].astype(np.float64)
    lead = (1, -1) if source.op == "ConvTranspose" else (-1,)
    weight = weight * gain.reshape(*lead, *([1] * (weight.ndim - len(lead))))
    bias = source.params.get("bias", np.zeros(gain.shape)) * gain + shift
    sizes = np.abs(offset_of(source) * gain) + np.abs(shift)
    before = float(np.abs(gain).max(initial=0.0)) * carried_by(source) + carried_by(scale)
    attrs = carrying(source.attrs, bias, sizes, before)
    params = {"weight": weight, "bias": bias}
    return (replace(source, name=scale.name, params=params, attrs=attrs),)


def _weights_after(
    source: Node, node: Node, nodes: Mapping[str, Node], readers: Mapping[str, int]
) -> tuple[Node, ...] | None:
    """``Linear`` or ``Conv`` with the ``Scale`` (perhaps reshaped) or the ``Linear`` before it."""
    alone = readers[source.name] == 1
    if source.op == "Scale":
        found = _gain_and_shift(
            source, source.shape, len(source.shape) - 1 if node.op == "Linear" else 1
        )
        merged = None if found is None else _scaled_weights(node, *found, carried_by(source))
        return None if merged is None else (replace(merged, inputs=source.inputs),)
    if node.op != "Linear":
        return None
    if source.op == "Linear" and alone:
        return _product(source, node)
    if source.op == "Reshape" and alone and nodes[source.inputs[0]].op == "Scale":
        scale = nodes[source.inputs[0]]
        if readers[scale.name] == 1:
            return _linear_after_reshaped_scale(scale, source, node)
    return None


def _linear_after_reshaped_scale(scale: Node, reshape: Node, node: Node) -> tuple[Node, ...] | None:
    params = {
        key: np.broadcast_to(value, scale.shape).reshape(reshape.shape)
        for key, value in scale.params.items()
    }
    moved = replace(scale, params=params)
    found = _gain_and_shift(moved, reshape.shape, len(reshape.shape) - 1)
    merged = None if found is None else _scaled_weights(node, *found, carried_by(scale))
    if merged is None:
        return None
    flat = replace(
        reshape, inputs=scale.inputs
    )  # takes the name over: ``node`` was its only reader
    return flat, replace(merged, inputs=(flat.name,))


def _scaled_weights(node: Node, gain: _Array, shift: _Array, carried: float) -> Node | None:
    """``W (gain x + shift) + b`` as one node, ``carried`` being that of the shift; a shift cannot
    pass under zero padding."""
    weight = node.params["weight"].astype(np.float64)
    if not is_moderate(weight, gain, shift):
        return None
    if node.op == "Conv" and (
        node.attrs["group"] != 1 or (shift.any() and any(node.attrs["pads"]))
    ):
        return None
    # W (gain x + shift) + b = (W gain) x + (W shift + b), where gain and shift belong to the
    # inputs of W, its second axis.
    tail = [1] * (weight.ndim - 2)
    params = {"weight": weight * gain.reshape(1, -1, *tail)}
    terms, axes = weight * shift.reshape(1, -1, *tail), tuple(range(1, weight.ndim))
    offset, sizes = terms.sum(axis=axes), np.abs(terms).sum(axis=axes) + np.abs(offset_of(node))
    if offset.any() or "bias" in node.params:
        params["bias"] = node.params.get("bias", np.zeros(())) + offset
    before = largest_row(weight) * carried + carried_by(node)
    attrs = carrying(node.attrs, params.get("bias", offset), sizes, before)
    return replace(node, params=params, attrs=attrs)


def _product(first: Node, second: Node) -> tuple[Node, ...] | None:
    """Two matrices as one where that is not larger."""
    inner, outer = (
        first.params["weight"].astype(np.float64),
        second.params["weight"].astype(np.float64),
    )
    if outer.shape[0] * inner.shape[1] > inner.size + outer.size:
        return None
    # V (W x + b) + c = (V W) x + (V b + c)
    weight = product_of_weights(outer, inner)
    if weight is None or not is_moderate(offset_of(first), offset_of(second)):
        return None
    params = {"weight": weight}
    bias = second.params.get("bias")
    if "bias" in first.params:
        moved = outer @ first.params["bias"]
        bias = moved if bias is None else moved + bias
    if bias is not None:
        params["bias"] = bias
    sizes = np.abs(outer) @ np.broadcast_to(np.abs(offset_of(first)), (outer.shape[1],))
    sizes = sizes + np.abs(offset_of(second))
    before = largest_row(outer) * carried_by(first) + carried_by(second)
    attrs = carrying(second.attrs, np.zeros(()) if bias is None else bias, sizes, before)
    return (replace(second, inputs=first.inputs, params=params, attrs=attrs),)
