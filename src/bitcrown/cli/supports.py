"""``bitcrown supports``: what can be asked, in the words of the VNN-LIB standard (2.1, chapters 4
and 5).

Of element types only ``real`` is named: that a type is supported says that proofs hold for its
arithmetic, and by default they are about the real function (``semantics runtime`` is about the
rounding of onnxruntime, where the operators' is known).
"""

from __future__ import annotations

import argparse
from typing import Any

from bitcrown.cli.exit_codes import DONE

SOLVER_NAME = "bitcrown"
_FIXED = {
    "onnx-element-types": ("real",),
    "vnnlib-versions": ("2.0", "2.1"),
    "hidden-node-theories": ("NH", "H"),
    "multiple-input-output-theories": ("SIO", "MIO"),
    "multiple-network-theories": ("SNET", "MENET", "MINET", "MNET"),
    "multiple-node-comparison-theories": ("SNC", "MNC"),
    "arithmetic-complexity-theories": ("BND", "OUTC", "LIN", "POLY"),
    "optimised-disjunctive-reasoning": ("true",),
    "serialise-assignments": ("false",),
}
_SPELLINGS = {"multiple-input-output-theories": ["multiple-inputs-output-theories"]}
"""The standard's own examples spell one of the options differently."""


def add_supports_command(commands: Any) -> None:
    supports = commands.add_parser("supports", help="capabilities, as the VNN-LIB standard asks")
    which = supports.add_mutually_exclusive_group(required=True)
    for name in ("onnx-opset-versions", "onnx-operators", *_FIXED):
        words = [f"--{word}" for word in (name, *_SPELLINGS.get(name, []))]
        which.add_argument(*words, dest="capability", action="store_const", const=name)
    supports.set_defaults(run=supports_command)


def supports_command(options: argparse.Namespace) -> int:
    print("\n".join(_answer(options.capability)))
    return DONE


def _answer(capability: str) -> tuple[str, ...]:
    if capability == "onnx-opset-versions":
        from bitcrown.model.onnx_reader import OPSETS

        return str(OPSETS.start), str(OPSETS.stop - 1)
    if capability == "onnx-operators":
        from bitcrown.model.lowering import LOWERINGS

        return tuple(sorted(name for name in LOWERINGS if "." not in name))
    return _FIXED[capability]
