"""Weights that a model keeps in files beside it, brought into the model.

torch writes them so by default, and models beyond the 2 GiB of a protobuf message have no other
way. Everything behind this sees one file: a tensor whose bytes lie elsewhere gets them as its own.
A model is data, and so is what it says about other files: they are opened only inside its folder
(``files.part_beside``), and all of them together may not have more bytes than one message.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitcrown.errors import ModelError
from bitcrown.files import part_beside

_WORD = b"location"
"""The key under which a tensor names its file: a model without this word has none."""


def with_outside_weights(content: bytes, path: Path, limit: int) -> bytes:
    """``content`` of the model at ``path``, with every weight inside. Raises ``ModelError``."""
    if _WORD not in content:
        return content
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        return content  # whoever parses it says so
    room = limit - len(content)
    tensors = [tensor for tensor in _tensors(model.graph) if _is_outside(tensor)]
    if not tensors:
        return content
    for tensor in tensors:
        data = _data_of(tensor, path, room)
        room -= len(data)
        tensor.raw_data = data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)


def _is_outside(tensor: Any) -> bool:
    return bool(tensor.external_data) or tensor.data_location == tensor.EXTERNAL


def _data_of(tensor: Any, path: Path, room: int) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = str(entries.get("location", ""))
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if entries.get("length") else None
        return part_beside(path.parent, location, offset, length, room)
    except (OSError, ValueError, UnicodeError) as error:
        raise ModelError(
            f"{path} keeps weight {tensor.name!r} in another file, {location!r}, which cannot be "
            f"used: {error}; it must lie beside the model"
        ) from error
