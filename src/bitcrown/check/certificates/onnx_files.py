"""What both readers of the checker take from an ONNX file in the same way: its parts, and the
windows of a convolution or a pool.

The ``onnx`` package parses the protobuf; nothing of the prover's readers is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitcrown.check.model_files import unpacked_model
from bitcrown.errors import ModelError
from bitcrown.files import no_model


def onnx_model(path: Path) -> Any:
    """The ONNX model in ``path`` (or ``path.gz``). Raises ``ModelError``."""
    import onnx

    content = unpacked_model(path)
    try:
        return onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf's own classes depend on its implementation
        raise no_model(path, content) from error


def graph_inputs(model: Any) -> list[Any]:
    """Inputs without those that have an initializer."""
    stored = {item.name for item in model.graph.initializer}
    return [item for item in model.graph.input if item.name not in stored]


def require_one_writer(model: Any) -> None:
    """Every tensor has one origin. onnxruntime takes the last ``Constant`` of a name, or else the
    last weight, for all who read it, those before it included. Raises ``ModelError``."""
    graph = model.graph
    seen: set[str] = set()
    for name in (
        *(item.name for item in graph.initializer),
        *(item.values.name for item in graph.sparse_initializer),
        *(item.name for item in graph_inputs(model)),
        *(name for node in graph.node for name in node.output if name),
    ):
        if name in seen:
            raise ModelError(f"certificates: the tensor {name!r} is written twice")
        seen.add(name)


def extents(item: Any) -> tuple[int, ...]:
    """Shape of an input, every free extent 1."""
    return tuple(max(1, axis.dim_value) for axis in item.type.tensor_type.shape.dim)


def element_type(item: Any) -> np.dtype[Any]:
    from onnx.helper import tensor_dtype_to_np_dtype

    return np.dtype(tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type))


def attributes_of(node: Any) -> dict[str, Any]:
    """Attributes by name; words as text."""
    from onnx.helper import get_attribute_value

    found = {item.name: get_attribute_value(item) for item in node.attribute}
    return {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for name, value in found.items()
    }


class Windows(NamedTuple):
    """Of a convolution or a pool: ``pads`` at the beginning of every axis, then at the end; ``out``
    windows along every axis."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    out: tuple[int, ...]


def windows_over(
    attributes: Mapping[str, Any], plane: Sequence[int], kernel: Sequence[int]
) -> Windows:
    """The windows of a kernel over a plane, rounded down. Raises ``ValueError`` for those that ONNX
    does not know."""
    rank = len(kernel)
    strides = tuple(int(s) for s in attributes.get("strides", [1] * rank))
    dilations = tuple(int(d) for d in attributes.get("dilations", [1] * rank))
    pads = tuple(int(p) for p in attributes.get("pads", [0] * 2 * rank))
    word = attributes.get("auto_pad", "NOTSET")
    if not len(plane) == len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        raise ValueError("strides, dilations or pads that do not fit the kernel")
    if min(*strides, *dilations) < 1 or min(pads) < 0:
        raise ValueError("strides and dilations below 1 or negative pads")
    axes = list(
        zip(
            plane,
            strides,
            [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)],
            strict=True,
        )
    )
    if word in ("SAME_UPPER", "SAME_LOWER"):
        # as many windows as ceil(n / s), what is missing on both sides alike
        total = [max(0, (-(-n // s) - 1) * s + reach - n) for n, s, reach in axes]
        small = tuple(value // 2 for value in total)
        large = tuple(value - half for value, half in zip(total, small, strict=True))
        pads = small + large if word == "SAME_UPPER" else large + small
    elif word == "VALID":
        pads = (0,) * 2 * rank
    elif word != "NOTSET":
        raise ValueError(f"an unknown auto_pad {word!r}")
    out = tuple(
        (n + pads[i] + pads[i + rank] - reach) // s + 1 for i, (n, s, reach) in enumerate(axes)
    )
    return Windows(strides, dilations, pads, out)


def cut_quotient(left: Any, right: Any) -> Any:
    """The quotient of integers, cut towards zero as ONNX has it. Raises ``ValueError`` for a zero
    divisor, and for the least integer of a signed type, which has no absolute value in it."""
    if not np.all(right):
        raise ValueError("a division by zero")
    if any(v.dtype.kind == "i" and (v == np.iinfo(v.dtype).min).any() for v in (left, right)):
        raise ValueError("a division of the least integer of a type")
    return np.sign(left) * np.sign(right) * (np.abs(left) // np.abs(right))
