"""A certificate against the files that it is about: read by the checker alone, whatever the prover
made of them.

The integer network and the integer property that a certificate argues about come with it (or from
anywhere else): they are an answer's reading of the question, and nobody is believed. The network
must enclose what the file computes, and the property's own cases must imply the certificate's, both
verified by this room's readers; then the steps are checked.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from bitcrown.check.certificates.documents import CertificateJudgement, need
from bitcrown.check.certificates.integers.checker import check_integer_proof
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.property import Claim, OutputValues
from bitcrown.spec.problem import Problem


def check_h5(
    model: Path, problem: Problem | None, network: Any, prop: Any, certificate: Any
) -> CertificateJudgement:
    """As ``check_onnx``, for a fixed-point perceptron, whose canonical form is rebuilt."""
    import numpy as np

    from bitcrown.check.certificates.integers.fixed_point_file import canonical_form
    from bitcrown.check.certificates.integers.property import EvenValues
    from bitcrown.check.certificates.quantized.file import Read, claim_of_file
    from bitcrown.check.certificates.quantized.reading import FileReading

    def wanted(compiled: IntegerCircuit, hint: Claim) -> Claim:
        is_files = network == canonical_form(model)
        need(is_files, "the certificate is about another network than the file's")
        ends = zip(compiled.low[compiled.output], compiled.high[compiled.output], strict=True)
        outputs: list[OutputValues] = [EvenValues(a, b, Fraction(1), Fraction(a)) for a, b in ends]
        read = Read(FileReading(compiled), None, np.dtype(np.uint16), outputs)
        return hint if problem is None else claim_of_file(read, problem, hint)

    return check_integer_proof(network, prop, certificate, wanted)


def check_onnx(
    model: Path, problem: Problem | None, network: Any, prop: Any, certificate: Any
) -> CertificateJudgement:
    """Whether ``certificate`` proves ``problem`` unsatisfiable on the quantized ONNX file
    ``model``.

    ``network``, ``prop``: the JSON forms that the certificate is bound to; without a problem,
    ``prop`` is what is asked, of the file's integers. Raises ``ModelError`` for a file that cannot
    be read.
    """
    from bitcrown.check.certificates.onnx_files import onnx_model
    from bitcrown.check.certificates.quantized.agreement import require_agreement
    from bitcrown.check.certificates.quantized.file import claim_of_file, read_file

    parsed = onnx_model(model)

    def wanted(compiled: IntegerCircuit, hint: Claim) -> Claim:
        read = read_file(parsed, compiled)
        claim = hint if problem is None else claim_of_file(read, problem, hint)
        require_agreement(read, claim, certificate["digest"])
        return claim

    return check_integer_proof(network, prop, certificate, wanted)
