"""Certificates of files: which checker a file is for, and what it is given.

A gzipped certificate is about a float network (``check.certificates.floats``, which reads the
original files itself). Any other argues about an integer network and an integer property, which it
carries along; where it does not, the prover reads the files once more to have them. Either way
nobody is believed: the checker verifies with readers of its own that they are what the files say
(``check.certificates.files``), and then the proof (``check.certificates.integers``). Network and
property can also be given in those forms, as JSON; then they are the question themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.errors import ModelError, PropertyError
from bitcrown.spec.loading import load_files

if TYPE_CHECKING:
    from bitcrown.check.certificates.documents import CertificateJudgement
    from bitcrown.quant.network.graph import IntegerNetwork
    from bitcrown.quant.query import IntegerQuery
    from bitcrown.spec.problem import Problem

_LARGEST_FILE = 1 << 30


def check_certificate(model: Path, prop: Path, certificate: Path) -> CertificateJudgement:
    """Whether the proof in ``certificate`` shows that ``prop`` cannot be violated on ``model``.

    Raises ``ModelError`` or ``PropertyError`` for files that cannot be read.
    """
    if _is_gzip(certificate):
        return _check_float(model, prop, certificate)
    from bitcrown.check.certificates.documents import CertificateJudgement, Reject
    from bitcrown.check.certificates.files import check_h5, check_onnx
    from bitcrown.check.certificates.integers.checker import check_integer_proof

    is_file, is_text = _is_kind(model, ".onnx") or _is_kind(model, ".h5"), _is_kind(prop, ".vnnlib")
    if is_text and not is_file:
        raise PropertyError(
            f"{prop} can only be read together with the network file that it is about, not {model}"
        )
    try:
        proof = _read_json(certificate)
        if not is_file:
            return check_integer_proof(_read_json(model), _read_json(prop), proof)
        carried = proof.get("forms") if isinstance(proof, dict) else None
        if isinstance(carried, dict) and carried.keys() == {"network", "property"}:
            network, asked = carried["network"], carried["property"]
        else:
            network, asked = forms_of(model, prop if is_text else None)
        problem = _problem_of(model, prop) if is_text else None
        checked = check_h5 if _is_kind(model, ".h5") else check_onnx
        return checked(model, problem, network, asked if is_text else _read_json(prop), proof)
    except Reject as problem_with_it:
        return CertificateJudgement(False, str(problem_with_it))


def forms_of(model: Path, prop: Path | None) -> tuple[Any, Any]:
    """The integer network, and the integer property, as the prover reads the files."""
    from bitcrown.quant.proof.writer import network_form, property_form

    network = read_network(model)
    return network_form(network), property_form(
        integer_query(model, prop, network)
    ) if prop is not None else None


def _problem_of(model: Path, prop: Path) -> Problem:
    """The property's cases. Raises ``PropertyError``."""
    problem = load_files(model, prop)
    if not problem.covers_all:
        raise PropertyError(f"{prop} leaves inputs without bounds; certificates need a box")
    if len(problem.networks) != 1:
        raise PropertyError(
            f"{prop} is about {len(problem.networks)} networks; certificates are about one"
        )
    return problem


def _is_gzip(path: Path) -> bool:
    """Raises ``PropertyError`` for a file that cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise PropertyError(f"{path} cannot be read: {error.strerror}") from error


def _check_float(model: Path, prop: Path, certificate: Path) -> CertificateJudgement:
    """The same for a proof about a float network; ``model`` may be the text of a list of named
    networks."""
    from bitcrown.check.certificates.floats.checker import check_float_proof, subject_of

    if certificate.stat().st_size > _LARGEST_FILE:
        raise PropertyError(f"{certificate} is larger than {_LARGEST_FILE >> 30} GiB")
    return check_float_proof(certificate.read_bytes(), subject_of(load_files(str(model), prop)))


def _is_kind(path: Path, suffix: str) -> bool:
    return path.name.removesuffix(".gz").endswith(suffix)


def read_network(path: Path) -> IntegerNetwork:
    """The integer network of a quantized ONNX file or a fixed-point perceptron. Raises
    ``ModelError``."""
    from bitcrown.model.file import NetworkFile
    from bitcrown.quant.formats.fixed_point import read_h5
    from bitcrown.quant.formats.onnx_file import read_onnx

    if _is_kind(path, ".h5"):
        return read_h5(path)
    file = NetworkFile(path)
    if not file.is_quantized:
        raise ModelError(
            f"{path} is no network of integers with fixed scales; certificates exist for those only"
        )
    return read_onnx(file)


def integer_query(model: Path, vnnlib: Path, network: IntegerNetwork) -> IntegerQuery:
    """The property as the prover asks it. Raises ``PropertyError`` if its cases have different
    input boxes."""
    from bitcrown.quant.query import split_by_box
    from bitcrown.search.quantized import covering

    problem = _problem_of(model, vnnlib)
    queries = split_by_box(covering(problem, [input_kind(model)] * problem.n_inputs), network)
    if len(queries) != 1:
        raise PropertyError(
            f"{vnnlib} has cases over {len(queries)} input boxes; a certificate is about exactly "
            "one"
        )
    return queries[0]


def input_kind(model: Path) -> str:
    """Name of the element type of the one input of a quantized file. onnxruntime need not know its
    operators."""
    if not _is_kind(model, ".onnx"):
        return "float32"
    from bitcrown.check.certificates.onnx_files import element_type, graph_inputs, onnx_model

    inputs = graph_inputs(onnx_model(model))
    if len(inputs) != 1:
        raise ModelError(
            f"{model} has {len(inputs)} inputs; certificates are about networks with one"
        )
    return str(element_type(inputs[0]))


def _read_json(path: Path) -> Any:
    """Raises ``PropertyError`` for what is no JSON file, ``Reject`` for JSON that holds more
    than integers."""
    from bitcrown.check.certificates.documents import NotJson, parsed

    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise PropertyError(f"{path} is larger than {_LARGEST_FILE >> 30} GiB")
        return parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PropertyError(f"{path} cannot be read: {error.strerror}") from error
    except (NotJson, UnicodeDecodeError) as error:
        raise PropertyError(f"{path} is not a JSON file: {error}") from error
