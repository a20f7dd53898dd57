"""bitcrown decides whether a neural network can misbehave.

problem = bitcrown.load("net.onnx", "property.vnnlib")
verdict = bitcrown.verify(problem)
answer = bitcrown.robust("net.onnx", "cat.png", "2/255")

Names load when they are first used: ``import bitcrown`` alone imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitcrown.api import attack, bound, evaluate, load, robust, verify
    from bitcrown.budget import Budget
    from bitcrown.errors import BitcrownError
    from bitcrown.settings import Settings
    from bitcrown.spec.problem import Problem
    from bitcrown.spec.property import Property
    from bitcrown.verdict import Reason, Status, Verdict, Witness

__all__ = [
    "BitcrownError",
    "Budget",
    "Problem",
    "Property",
    "Reason",
    "Settings",
    "Status",
    "Verdict",
    "Witness",
    "attack",
    "bound",
    "evaluate",
    "load",
    "robust",
    "verify",
]

_HOMES = {
    "BitcrownError": "errors",
    "Budget": "budget",
    "Problem": "spec.problem",
    "Property": "spec.property",
    "Reason": "verdict",
    "Settings": "settings",
    "Status": "verdict",
    "Verdict": "verdict",
    "Witness": "verdict",
    "attack": "api",
    "bound": "api",
    "evaluate": "api",
    "load": "api",
    "robust": "api",
    "verify": "api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from bitcrown.provenance import version

        return version()
    if name not in _HOMES:
        raise AttributeError(f"module 'bitcrown' has no attribute {name!r}")
    return getattr(import_module(f"bitcrown.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
