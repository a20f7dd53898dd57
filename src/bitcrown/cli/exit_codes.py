"""What the exit codes of every command mean."""

from __future__ import annotations

DONE = 0
"""Decided (``sat`` or ``unsat``), or done."""
WRONG = 1
"""A wrong answer, a witness that does not hold, or a proof that was rejected."""
BAD_INPUT = 2
"""Input that cannot be used; one sentence on stderr says why."""
UNDECIDED = 3
"""No answer: ``unknown`` or ``timeout``."""
INTERRUPTED = 130
"""128 and the number of SIGINT, as a shell reports a program that this signal ended."""
