"""The replayed network as one message: weights in files beside it are put where they belong.

onnxruntime would open those files itself when it is given a path, and follow what a model says
about other places of the machine. Here it gets bytes, and only plain files in the model's own
folder are read. (The prover has code of its own for this: an error in it must not hide here.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitcrown.errors import ModelError
from bitcrown.files import part_beside


def completed_model(content: bytes, path: Path, limit: int) -> bytes:
    """``content`` of the model at ``path``; itself where it is complete. Raises ``ModelError``."""
    # Names of fields are not stored, but the keys of these entries are.
    if content.find(b"location") < 0:
        return content
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return content  # onnxruntime says what is wrong
    total, count = len(content), 0
    for tensor in _every_tensor(model):
        if not tensor.external_data and tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        data = _bytes_for(tensor, path, limit - total)
        total, count = total + len(data), count + 1
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = data
    whole: bytes = model.SerializeToString(deterministic=True) if count else content
    return whole


def _every_tensor(model: Any) -> list[Any]:
    found = list(model.graph.initializer)
    for node in model.graph.node:
        for item in node.attribute:
            found.append(item.t)
            found.extend(item.tensors)
    return found


def _bytes_for(tensor: Any, path: Path, limit: int) -> bytes:
    where = {item.key: item.value for item in tensor.external_data}
    start, size = where.get("offset", ""), where.get("length", "")
    if not all(word == "" or word.isdecimal() for word in (start, size)):
        raise ModelError(f"{path}: weight {tensor.name!r} lies at no position of a file")
    try:
        return part_beside(
            path.parent,
            where.get("location", ""),
            int(start or 0),
            int(size) if size else None,
            limit,
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: weight {tensor.name!r} is not to be had from another file: {error}"
        ) from error
