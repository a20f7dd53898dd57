"""How late things happen on this machine, measured while it matters, so that margins can follow.

Two quantities suffice. A process that sleeps wakes up ``late`` seconds after it asked to. A process
that computes gets on ``slow`` times slower than alone: the kernel counts, for every thread, the
nanoseconds on a processor and those spent runnable but waiting for one (``/proc/self/schedstat``),
and ``slow = 1 + waiting / running``. On an idle machine they are 0 and 1. What a parent still has
to do at the end is a known number of wake-ups and a known amount of computing, so

    seconds needed at the end <= WAKES late + WORK slow.

Both are the worst of the last ``WINDOW`` seconds: a load that begins late counts at once, one that
is over does not for long. The first sample is the start of this process itself, shell and
interpreter included.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

WAKES = 8
"""Wake-ups between the deadline and the end of the parent: its own, the dying worker's, the
guard's, of the disk."""
WORK = 0.03
"""CPU seconds between the deadline and the end of the parent (measured: 0.006): one look over all
processes, killing, looking for strays, results file, record."""
WINDOW = 15.0
_SAMPLE = 0.003
"""CPU seconds after which the ratio of waiting to running says something."""
_MOST_SLOW = 100.0
_SCHEDSTAT = Path("/proc/self/schedstat")


def run_and_wait() -> tuple[float, float]:
    """CPU seconds of this thread so far, and seconds it waited for a processor (0 where the kernel
    does not count)."""
    try:
        running, waiting = _SCHEDSTAT.read_text(encoding="ascii").split()[:2]
        return int(running) / 1e9, int(waiting) / 1e9
    except (OSError, ValueError):
        return time.thread_time(), 0.0


class Load:
    """``late`` (seconds) and ``slow`` (a factor from 1 on) of the last while."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque()
        self._slow: deque[tuple[float, float]] = deque()
        self._seen = (0.0, 0.0)
        self.look()

    def look(self) -> None:
        """Take what was computed and waited since the last look into account; cheap."""
        # Each stretch begins where the last one that was sampled ended, so no waiting is left out;
        # a stretch with too little computing to tell goes on to the next look.
        now = run_and_wait()
        running, waiting = now[0] - self._seen[0], now[1] - self._seen[1]
        if running >= _SAMPLE:
            self._seen = now
            self._note(self._slow, min(1.0 + max(0.0, waiting) / running, _MOST_SLOW))

    def slept(self, asked: float, took: float) -> None:
        """A sleep of ``asked`` seconds, which nothing ended early, took ``took``."""
        self._note(self._late, max(0.0, took - asked))

    @property
    def late(self) -> float:
        return max((value for _, value in self._late), default=0.0)

    @property
    def slow(self) -> float:
        return max((value for _, value in self._slow), default=1.0)

    def needed(self) -> float:
        """Seconds that the end takes beyond what it takes on an idle machine."""
        return WAKES * self.late + WORK * (self.slow - 1.0)

    def facts(self) -> dict[str, float]:
        return {"late_s": round(self.late, 4), "slow": round(self.slow, 2)}

    def _note(self, samples: deque[tuple[float, float]], value: float) -> None:
        """Append a sample, keeping the largest of the window at the front.

        Values fall strictly from the oldest to the newest: what is no larger than a newer sample
        can never be the largest again, and what is older than the window does not count.
        """
        now = time.monotonic()
        while samples and samples[-1][1] <= value:
            samples.pop()
        samples.append((now, value))
        while samples[0][0] < now - WINDOW:
            samples.popleft()
