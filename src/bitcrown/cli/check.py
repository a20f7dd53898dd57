"""``bitcrown check`` and ``bitcrown check-certificate``: is an answer true, whoever gave it?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from bitcrown.budget import Budget
from bitcrown.cli.chosen_output import add_network_options, network_with
from bitcrown.cli.exit_codes import DONE, UNDECIDED, WRONG
from bitcrown.cli.options import add_json, verbosity_of


def add_check_commands(commands: Any) -> None:
    check = commands.add_parser(
        "check", help="replay the witness of a results file on the original network"
    )
    for name, text in (
        ("result", "results file: what verify --result or run_instance.sh wrote"),
        ("onnx", "the network that it is about (or the list of a pair)"),
        ("vnnlib", "the property that it is about"),
    ):
        check.add_argument(name, help=text)
    add_network_options(check)
    add_json(check)
    check.set_defaults(run=check_command)

    proof = commands.add_parser(
        "check-certificate", help="check a proof of an unsat, independently"
    )
    for name, text in (
        ("model", "ONNX, .h5 or JSON"),
        ("property", "VNNLIB or JSON"),
        ("certificate", "what verify --certificate wrote"),
    ):
        proof.add_argument(name, type=Path, help=text)
    add_json(proof)
    proof.set_defaults(run=check_certificate_command)


def check_command(options: argparse.Namespace) -> int:
    from bitcrown.check.result_file import CheckOutcome, check_result
    from bitcrown.child_process import text_or_error

    # In a child, because onnxruntime aborts on some damaged files: then that is what is said.
    def replayed() -> str:
        with network_with(options.onnx, options) as onnx:
            return json.dumps(
                astuple(check_result(Path(options.result), onnx, Path(options.vnnlib)))
            )

    answer = CheckOutcome(
        *json.loads(text_or_error(replayed, Budget.unlimited(), "that replays the witness"))
    )
    say = verbosity_of(options)
    if say.is_json:
        say.json("check", asdict(answer))
    else:
        print(answer.sentence)
    if not answer.accepted:
        return WRONG
    return DONE if answer.word in ("sat", "unsat") else UNDECIDED


def check_certificate_command(options: argparse.Namespace) -> int:
    from bitcrown.certificates.files import check_certificate

    finding = check_certificate(options.model, options.property, options.certificate)
    say = verbosity_of(options)
    if say.is_json:
        say.json("check-certificate", {"accepted": finding.accepted, "sentence": finding.message})
        return DONE if finding.accepted else WRONG
    print("accepted" if finding.accepted else f"rejected: {finding.message}")
    return DONE if finding.accepted else WRONG
