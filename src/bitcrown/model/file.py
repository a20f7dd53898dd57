"""The ONNX file of a network, opened once: its bytes, the model in them, a session of onnxruntime.

Whoever runs something makes one ``NetworkFile`` for each path and passes it down; every reader is
given that object. What it holds is made when it is first asked for, so making one costs nothing and
imports nothing. Only ``check`` opens the file for itself: a replay that shared this code would
share its errors.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bitcrown.errors import ModelError, UnsupportedError, said_by
from bitcrown.files import no_model
from bitcrown.model.flattened import flattened
from bitcrown.model.outside import with_outside_weights

if TYPE_CHECKING:
    import numpy as np

_LARGEST_FILE = 2 << 30
"""What a protobuf message may hold."""
_GZIP_MAGIC = b"\x1f\x8b"
QONNX_DOMAINS = (
    *("onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.general"),
    "qonnx.custom_op.channels_last",
)
MCT_DOMAIN = "mct_quantizers"
"""Sony's Model Compression Toolkit: the same idea as QONNX, with thresholds in place of scales."""
_ABSENT = (*QONNX_DOMAINS, MCT_DOMAIN)
"""Domains whose operators onnxruntime lacks, and that are written in standard ones."""
_QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "BitShift",
    "Quant",
    "BipolarQuant",
    "QGemm",
}
"""Operators whose rounding or wrapping the float engine has no exact rule for; also everything
named QLinear..."""
_NARROW = {"int4", "uint4", "int8", "uint8"}
"""Element types of an input that only networks of integers have."""


class FileTensor(NamedTuple):
    """An input or output as the file declares it: ``shape`` has 1 for a free extent and is None
    where the file has none, ``dtype`` is None where its type has no counterpart in numpy."""

    name: str
    shape: tuple[int, ...] | None
    dtype: np.dtype[Any] | None


class NetworkFile:
    """The file at ``path``, plain or gzip; ``path.gz`` is taken where only that exists.

    Nothing is opened before it is needed. Copies that go to other processes take the bytes along
    and do not open the file again.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self.path = path
        if content is not None:
            self.content = content

    @classmethod
    def of(cls, source: NetworkFile | Path) -> NetworkFile:
        """``source`` itself, or the file at a path."""
        return source if isinstance(source, NetworkFile) else cls(source)

    def __reduce__(self) -> tuple[Any, ...]:
        return NetworkFile, (self.path, self.content)

    @cached_property
    def content(self) -> bytes:
        """The bytes, unpacked, with the weights that lie in files beside it. Raises
        ``ModelError``."""
        return with_outside_weights(_unpacked(self.path), self.path, _LARGEST_FILE)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the unpacked bytes, in hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def proto(self) -> Any:
        """The parsed ``ModelProto`` without functions, nodes in order, shared by all readers: it
        must not be changed.

        Raises ``ModelError``, or ``UnsupportedError`` for sparse weights.
        """
        parsed = _parsed(self.content, self.path)
        written = flattened(
            parsed, self.path, lambda to: runtime_session(self.content, self.path, written_to=to)
        )
        self.is_as_written = written is parsed
        return written

    @cached_property
    def inputs(self) -> tuple[FileTensor, ...]:
        """Inputs that the file holds no value of; older files list their weights there as well."""
        stored = {tensor.name for tensor in self.proto.graph.initializer}
        return tuple(_declared(info) for info in self.proto.graph.input if info.name not in stored)

    @cached_property
    def outputs(self) -> tuple[FileTensor, ...]:
        return tuple(_declared(info) for info in self.proto.graph.output)

    @cached_property
    def is_quantized(self) -> bool:
        """Whether the file needs an exact reader of integers, by its operators and input types.

        Integers whose scale depends on the input (``DynamicQuantizeLinear``) have none: the float
        engine encloses them.
        """
        nodes = self.proto.graph.node
        if any(node.op_type == "DynamicQuantizeLinear" for node in nodes):
            return False
        return any(str(tensor.dtype) in _NARROW for tensor in self.inputs) or any(
            node.op_type in _QUANTIZED
            or node.op_type.startswith("QLinear")
            or node.domain in _ABSENT
            for node in nodes
        )

    @property
    def is_emulated(self) -> bool:
        """Whether operators that onnxruntime lacks are written in standard ones."""
        return any(node.domain in _ABSENT for node in self.proto.graph.node)

    @property
    def quantization(self) -> tuple[str, ...]:
        """Names of the formats in which the file writes its integers."""
        ops = {node.op_type for node in self.proto.graph.node}
        has_qlinear = any(op.startswith("QLinear") for op in ops)
        formats = {
            "QDQ": "DequantizeLinear" in ops and not has_qlinear,
            "QOperator": has_qlinear,
            "QONNX": any(node.domain in QONNX_DOMAINS for node in self.proto.graph.node),
            "MCT": any(node.domain == MCT_DOMAIN for node in self.proto.graph.node),
            "integer arithmetic": bool(ops & {"MatMulInteger", "ConvInteger"}),
        }
        return tuple(name for name, is_used in formats.items() if is_used)

    @cached_property
    def standard(self) -> NetworkFile:
        """What onnxruntime can run, with the tensors of ``proto``: the file itself, if that is as
        it was written, or QONNX and MCT in standard operators. Raises ``UnsupportedError`` where
        those cannot be written."""
        if not self.is_emulated:  # (which has asked for ``proto``)
            is_same = self.is_as_written
            return self if is_same else NetworkFile(self.path, self.proto.SerializeToString())
        from bitcrown.model.standard_form import standard_form

        written = standard_form(self.proto, _ABSENT)
        return NetworkFile(self.path, written.SerializeToString())

    @cached_property
    def session(self) -> Any:
        """onnxruntime on the ``standard`` file (see ``runtime_session``)."""
        return runtime_session(self.standard.content, self.path)

    def release(self) -> None:
        """Forget the parsed model and the session, each as large as all weights.

        Either is made again from the bytes where it is asked for once more.
        """
        for name in ("proto", "session", "standard"):
            self.__dict__.pop(name, None)


def runtime_session(
    content: bytes, name: str | Path, optimised: bool = False, written_to: Path | None = None
) -> Any:
    """An onnxruntime session: CPU, one thread, graph optimisations off unless ``optimised``; what
    it runs is ``written_to`` a file.

    Raises ``ModelError``, which calls the model ``name``.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if written_to is not None:
        options.optimized_model_filepath = str(written_to)
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes that only exist inside its extension
        raise ModelError(f"onnxruntime cannot load {name}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What onnxruntime says first; the rest is its source code's business."""
    return next(iter(str(error).splitlines()), repr(error))


def with_outputs(content: bytes, names: Iterable[str]) -> bytes:
    """The model with the tensors ``names`` as outputs behind those that it has."""
    import onnx

    model = onnx.ModelProto.FromString(content)
    present = {info.name for info in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in present
    )
    result: bytes = model.SerializeToString()
    return result


def _unpacked(path: Path) -> bytes:
    if not path.exists() and Path(f"{path}.gz").exists():
        path = Path(f"{path}.gz")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name the network file in it")
    try:
        with open(path, "rb") as file:
            head = file.read(len(_GZIP_MAGIC))
            if head == _GZIP_MAGIC:
                file.seek(0)
                with gzip.open(file, "rb") as packed:
                    data = packed.read(_LARGEST_FILE + 1)
            else:
                data = head + file.read(_LARGEST_FILE)
    except (OSError, EOFError, zlib.error) as error:
        raise ModelError(f"the network file {path} cannot be read: {said_by(error)}") from error
    if len(data) > _LARGEST_FILE:
        raise ModelError(f"the network file {path} is larger than {_LARGEST_FILE >> 30} GiB")
    return data


def _parsed(content: bytes, path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        if content.lstrip()[:1] in (b"(", b";"):
            raise ModelError(
                f"{path} is no ONNX file but text, as properties are; the network comes first, the "
                "property after it"
            ) from error
        raise no_model(path, content) from error
    if not model.graph.output:
        raise ModelError(f"{path} is not an ONNX file: it has no outputs")
    # Protobuf gives bytes where UTF-8 is broken.
    if not all(isinstance(name, str) for name in _names(model)):
        raise ModelError(f"{path} is damaged: it has names that are not UTF-8")
    if model.graph.sparse_initializer:
        raise UnsupportedError(f"{path} has sparse weights; save it with dense ones")
    return model


def _names(model: Any) -> Iterator[Any]:
    for node in model.graph.node:
        yield from (node.op_type, node.name, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for group in (model.graph.initializer, model.graph.input, model.graph.output):
        yield from (entry.name for entry in group)
    yield from (entry.domain for entry in model.opset_import)


def _declared(info: Any) -> FileTensor:
    import numpy as np
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = info.type.tensor_type
    has_shape = info.type.HasField("tensor_type") and tensor.HasField("shape")
    shape = tuple(max(1, dim.dim_value) for dim in tensor.shape.dim) if has_shape else None
    try:
        dtype = np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        dtype = None
    return FileTensor(info.name, shape, dtype)
