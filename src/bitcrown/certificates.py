"""Certificates of files: the checker speaks canonical JSON, users have ``.onnx`` and ``.vnnlib``.

A certificate binds the SHA-256 of the network's and of the property's canonical form. Either is given as that form, or
as the file it comes from; then it is read as the prover reads it, and the proof is about what was read. The reader is
compared with onnxruntime, bit for bit, on random inputs whenever it reads a file; the checking itself shares no code
with the prover (``check.certificate_checker``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.errors import ModelError, PropertyError

if TYPE_CHECKING:
    from bitcrown.check.certificate_checker import Finding
    from bitcrown.quant.integer_graph import IntegerNetwork
    from bitcrown.quant.query import IntegerQuery

LARGEST_FILE = 1 << 30


def check_files(model: Path, prop: Path, certificate: Path) -> Finding:
    """Whether the proof in ``certificate`` shows that ``prop`` cannot be violated on ``model``.

    Raises ``ModelError`` or ``PropertyError`` for files that cannot be read.
    """
    from bitcrown.check.certificate_checker import Finding, check
    from bitcrown.check.strict_json import Malformed
    from bitcrown.quant.certificate import network_form, property_form

    if is_kind(model, ".onnx"):
        network = read_network(model)
        form = network_form(network)
        asked = property_form(read_query(model, prop, network)) if is_kind(prop, ".vnnlib") else read_json(prop)
    elif is_kind(prop, ".vnnlib"):
        raise PropertyError(f"{prop} can only be read together with the .onnx file that it is about, not with {model}")
    else:
        form, asked = read_json(model), read_json(prop)
    try:
        return check(form, asked, read_json(certificate))
    except Malformed as problem:
        return Finding(False, str(problem))


def is_kind(path: Path, suffix: str) -> bool:
    return path.name.removesuffix(".gz").endswith(suffix)


def read_network(path: Path) -> IntegerNetwork:
    """The integer network of a quantized ONNX file. Raises ``ModelError``."""
    from bitcrown.quant.onnx_quant import looks_quantized, read_onnx

    if not looks_quantized(path):
        raise ModelError(f"{path} is no network of integers with fixed scales; certificates exist for those only")
    return read_onnx(path)


def read_query(onnx: Path, vnnlib: Path, network: IntegerNetwork) -> IntegerQuery:
    """The property as the prover asks it. Raises ``PropertyError`` if its cases have different input boxes."""
    from bitcrown.api import load
    from bitcrown.quant.query import split_by_box
    from bitcrown.search.quantized import covering

    queries = split_by_box(covering(load(onnx, vnnlib)), network)
    if len(queries) != 1:
        raise PropertyError(f"{vnnlib} has cases over {len(queries)} input boxes; a certificate is about exactly one")
    return queries[0]


def read_json(path: Path) -> Any:
    """Raises ``PropertyError`` for what is no JSON file, ``Malformed`` for JSON that holds more than integers."""
    from bitcrown.check.strict_json import NotJson, parsed

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise PropertyError(f"{path} is larger than {LARGEST_FILE >> 30} GiB")
        return parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PropertyError(f"{path} cannot be read: {error.strerror}") from error
    except (NotJson, UnicodeDecodeError) as error:
        raise PropertyError(f"{path} is not a JSON file: {error}") from error
