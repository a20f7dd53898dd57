"""What a decision ends with: a status, its evidence, and the record of how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class Status(StrEnum):
    """The words of the result file (VNN-COMP 2022-2026)."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"
    ERROR = "error"


class Reason(StrEnum):
    """Why there is no answer, written for a reader."""

    NONE = ""
    DEADLINE = "the time limit was reached before the search ended"
    MEMORY = "the memory limit was reached before the search ended"
    UNSUPPORTED = "the network or property uses an operation that has no rule yet"
    INCOMPLETE = "every split was tried and the bounds still do not decide the rest"
    REPLAY = "candidates were found but none survived replay on the original network"
    NUMERICS = "a bound was not a number, so nothing could be concluded from it"
    BAD_INPUT = "the input files could not be used"
    INTERRUPTED = "the run was interrupted before the search ended"
    CRASHED = "the worker process ended without an answer"


@dataclass(frozen=True)
class Witness:
    """A counterexample: flat float arrays per declared tensor, in declaration order (inputs and
    outputs by name)."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """What ``verify`` returns. ``phases``: seconds by phase; ``counters``: plain numbers.

    ``certificate``: where asked for, the proof of an unsat: JSON about an integer network, a file's
    bytes about floats.
    """

    status: Status
    reason: Reason = Reason.NONE
    detail: str = ""
    witness: Witness | None = None
    decided_by: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] | bytes | None = None

    def __post_init__(self) -> None:
        if (self.status is Status.SAT) != (self.witness is not None):
            raise ValueError("a verdict has a witness exactly when it is sat")
