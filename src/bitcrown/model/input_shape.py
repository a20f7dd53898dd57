"""Files whose input has free extents (``[batch, 3, h, w]``) as ones that have not.

What is decided is a network of one shape. It comes from the input that is asked about, from the
property, or from whoever asks; read as 1, free extents would be another network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitcrown.errors import ModelError
from bitcrown.model.file import NetworkFile


def with_input_shape(file: NetworkFile, shape: tuple[int, ...], folder: Path) -> NetworkFile:
    """``file`` with the free extents of its one input set to ``shape`` (with or without the first
    one, of the batch, which is 1 then), written to ``folder``; ``file`` itself where none but that
    is free. Raises ``ModelError`` where ``shape`` settles nothing."""
    given = _given(file.proto)
    dims = given[0] if len(given) == 1 else []
    is_batch_alone = not free_extents(file) and (len(dims) != len(shape) or shape[0] == 1)
    if is_batch_alone or all(dim.dim_value > 0 for dim in dims):
        return file
    wanted = shape if len(dims) == len(shape) else (1, *shape)
    if len(dims) != len(wanted):
        raise ModelError(
            f"the input of {file.path.name} has free extents ({_extents(dims)}), which an input of "
            f"shape {list(shape)} does not settle; save the network with a fixed input shape"
        )
    settled = [
        want if dim.dim_value <= 0 else dim.dim_value
        for dim, want in zip(dims, wanted, strict=True)
    ]
    path = folder / file.path.name.removesuffix(".gz")
    path.write_bytes(settled_content(file, [settled]))
    return NetworkFile(path)


def image_extents(
    file: NetworkFile, shape: tuple[int, ...], order: str = "auto"
) -> tuple[int, ...]:
    """``shape [C, H, W]`` of an image as the axes of the file's input: ``[H, W, C]`` where
    ``order`` says so, or where only that agrees with the extents that are fixed."""
    given = _given(file.proto)
    if len(given) != 1 or len(given[0]) != 4 or len(shape) != 3 or order == "chw":
        return shape
    turned = (*shape[1:], shape[0])
    inner = [dim.dim_value for dim in given[0]][1:]

    def agrees(one: tuple[int, ...]) -> bool:
        return all(mine <= 0 or mine == theirs for mine, theirs in zip(inner, one, strict=True))

    return turned if order == "hwc" or (agrees(turned) and not agrees(shape)) else shape


def settled_content(file: NetworkFile, shapes: Sequence[Sequence[int] | None]) -> bytes:
    """The model whose inputs (those that have no stored value) have ``shapes``; None: as before."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(file.proto)
    for dims, shape in zip(_given(model), shapes, strict=True):
        for dim, extent in zip(dims, shape or [], strict=shape is not None):
            dim.dim_value = extent
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    content: bytes = model.SerializeToString()
    return content


def settled_extents(file: NetworkFile, place: int, shape: tuple[int, ...]) -> list[int] | None:
    """``shape`` (with or without the first extent, of the batch) as that of input number ``place``;
    ``None`` where the file says otherwise."""
    dims = _given(file.proto)[place]
    wanted = shape if len(dims) == len(shape) else (1, *shape)
    fits = len(dims) == len(wanted) and all(
        dim.dim_value <= 0 or dim.dim_value == want for dim, want in zip(dims, wanted, strict=True)
    )
    return list(wanted) if fits else None


def input_extents(file: NetworkFile, place: int) -> str:
    """The extents of input number ``place`` as the file has them, in words."""
    return _extents(_given(file.proto)[place])


def free_extents(file: NetworkFile) -> str:
    """The extents of an input that leaves more than the first one free, in words; else empty."""
    for dims in _given(file.proto):
        if any(dim.dim_value <= 0 for dim in list(dims)[1:]):
            return _extents(dims)
    return ""


def _given(model: Any) -> list[Any]:
    """The extents of each input that has no stored value."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        info.type.tensor_type.shape.dim for info in model.graph.input if info.name not in stored
    ]


def _extents(dims: Any) -> str:
    return ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in dims)
