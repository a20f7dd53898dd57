"""Deadline and memory limit of one decision, in one object that every loop polls.

Time is seconds on the wall, or seconds of computing: those do not depend on what else the machine
does, so tables and tests that ask "decided within ten seconds?" get the same answer on a busy
machine as on an idle one. The computing of all threads of this process counts, that of child
processes does not (whoever starts one watches it); and because a process that waits computes
nothing, a budget of CPU seconds has a generous limit on the wall, too.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from bitcrown.errors import BudgetExpired

PATIENCE = 30.0
"""Seconds on the wall for each CPU second: how loaded a machine may be before it counts as
hanging."""


class Stopwatch:
    """``seconds`` since it was made, on the wall or of computing, whichever are fewer: what a piece
    of work costs, for choices between ways. Other processes do not count, nor does it count twice
    what two threads compute side by side."""

    def __init__(self) -> None:
        self._started = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        return min(time.monotonic() - self._started[0], time.process_time() - self._started[1])


@dataclass(frozen=True)
class Budget:
    """``deadline`` is a ``time.monotonic()`` reading (seconds); ``memory`` is bytes for tensors of
    the search.

    ``cpu_deadline`` is a ``time.process_time()`` reading of this process.
    """

    deadline: float
    memory: int = 4 << 30
    cpu_deadline: float = math.inf

    @classmethod
    def of_seconds(cls, seconds: float, memory: int = 4 << 30) -> Budget:
        return cls(time.monotonic() + seconds, memory)

    @classmethod
    def of_cpu_seconds(cls, seconds: float, memory: int = 4 << 30) -> Budget:
        """``seconds`` of computing, in at most ``PATIENCE`` times as many on the wall.

        Both clocks end it: one that only counted computing would never end while the process waits.
        At least ``PATIENCE`` seconds on the wall, because starting takes some that compute nothing.
        """
        return cls(
            time.monotonic() + PATIENCE * max(seconds, 1.0), memory, time.process_time() + seconds
        )

    @classmethod
    def of(cls, seconds: float, memory: int, counts_cpu: bool) -> Budget:
        return (
            cls.of_cpu_seconds(seconds, memory) if counts_cpu else cls.of_seconds(seconds, memory)
        )

    @classmethod
    def unlimited(cls) -> Budget:
        return cls(math.inf, 1 << 62)

    def remaining(self) -> float:
        """Seconds left, on the wall or of computing, whichever are fewer; negative afterwards."""
        return min(self.deadline - time.monotonic(), self.cpu_remaining())

    def cpu_remaining(self) -> float:
        """Seconds of computing left; infinite where only the wall counts."""
        return self.cpu_deadline - time.process_time()

    def is_expired(self) -> bool:
        return self.remaining() <= 0.0

    def check(self) -> None:
        """Raise ``BudgetExpired`` once the deadline has passed."""
        if self.is_expired():
            raise BudgetExpired("the time limit was reached")

    def for_child(self) -> Budget:
        """This budget as a child process forked now must read it: its own clock of computing begins
        at zero."""
        return Budget(self.deadline, self.memory, self.cpu_remaining())

    def capped(self, seconds: float) -> Budget:
        """The same budget with at most ``seconds`` left, of computing where that is what this
        budget counts."""
        if math.isfinite(self.cpu_deadline):
            # The wall's limit stays as it is: it only guards against hanging.
            return Budget(
                self.deadline, self.memory, min(self.cpu_deadline, time.process_time() + seconds)
            )
        return Budget(min(self.deadline, time.monotonic() + seconds), self.memory)
