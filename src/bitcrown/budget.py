"""Deadline and memory limit of one decision, in one object that every loop polls."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bitcrown.errors import BudgetExpired


@dataclass(frozen=True)
class Budget:
    """``deadline`` is a ``time.monotonic()`` reading (seconds); ``memory`` is bytes for tensors of the search."""

    deadline: float
    memory: int = 4 << 30

    @classmethod
    def of_seconds(cls, seconds: float, memory: int = 4 << 30) -> Budget:
        return cls(time.monotonic() + seconds, memory)

    def remaining(self) -> float:
        """Seconds left; negative once the deadline has passed."""
        return self.deadline - time.monotonic()

    def is_expired(self) -> bool:
        return self.remaining() <= 0.0

    def check(self) -> None:
        """Raise ``BudgetExpired`` once the deadline has passed."""
        if self.is_expired():
            raise BudgetExpired("the time limit was reached")

    def capped(self, seconds: float) -> Budget:
        """The same budget with at most ``seconds`` left."""
        return Budget(min(self.deadline, time.monotonic() + seconds), self.memory)
