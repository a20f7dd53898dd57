"""The line on stderr that says how far a long command has come."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitcrown.cli.explain import fact_words
from bitcrown.cli.options import Verbosity

if TYPE_CHECKING:
    from bitcrown.harness.watchdog import Watched

_COLUMNS = 146
"""A longer line would wrap on a wide terminal, and what wraps is not written over."""
_LIVE_SECONDS, _PLAIN_SECONDS = 0.2, 10.0
"""Between two lines: written over each other, or below each other."""


class ProgressLine:
    """On a terminal, each line is written over the last one, unless that one was to stay; elsewhere
    only the lines that stay are printed."""

    def __init__(self, is_quiet: bool = False) -> None:
        self.is_quiet = is_quiet
        self.live = sys.stderr.isatty() and not is_quiet
        self._is_open = False

    def show(self, line: str, stays: bool) -> None:
        if self.live:
            # \r and CSI K: back to the first column, and the row wiped
            text = f"\r\x1b[K{line if stays else line[:_COLUMNS]}"
            print(text, end="\n" if stays else "", file=sys.stderr, flush=True)
        elif stays and not self.is_quiet:
            print(line, file=sys.stderr, flush=True)
        self._is_open = not stays

    def end(self) -> None:
        """What is printed next begins a row of its own."""
        if self.live and self._is_open:
            print(file=sys.stderr)

    def wipe(self) -> None:
        """What is printed next takes the place of the line that is open."""
        if self.live and self._is_open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._is_open = False


class PhaseLine:
    """The phase that runs, its seconds, and what it says of itself: a live line on a terminal; with
    ``-v`` elsewhere, one line every ten seconds."""

    def __init__(self, say: Verbosity) -> None:
        self.line = ProgressLine(say.is_quiet)
        self.is_shown = self.line.live or say.is_verbose
        self.started = time.monotonic()
        self.next = self.started + (_LIVE_SECONDS if self.line.live else _PLAIN_SECONDS)
        self.facts: dict[str, Mapping[str, Any]] = {}
        self._phase, self._lock = "start", threading.Lock()
        self._ended = threading.Event()

    def report(self, phase: str, facts: Mapping[str, Any]) -> None:
        """What the library reports, as it comes."""
        if facts := {name: value for name, value in facts.items() if name != "counters"}:
            self.facts[phase] = facts
        self._phase = phase
        self._show(phase, self.facts.get(phase, {}))

    def tick(self) -> None:
        """Go on showing the seconds, in a thread, while a phase reports nothing."""
        if self.is_shown:
            threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        while not self._ended.wait(_LIVE_SECONDS):
            self._show(self._phase, self.facts.get(self._phase, {}))

    def look(self, seen: Watched) -> None:
        """What the watch over a worker has seen; called several times a second."""
        self._show(seen.progress.get("phase", "start"), seen.progress.get("facts", {}))

    def _show(self, phase: str, facts: Mapping[str, Any]) -> None:
        with self._lock:
            now = time.monotonic()
            if not self.is_shown or now < self.next or self._ended.is_set():
                return
            self.next = now + (_LIVE_SECONDS if self.line.live else _PLAIN_SECONDS)
            words = fact_words(facts)
            text = f"bitcrown: {now - self.started:.0f} s, {phase}{': ' if words else ''}{words}"
            self.line.show(text, stays=not self.line.live)

    def end(self) -> None:
        with self._lock:
            self._ended.set()
            self.line.wipe()
