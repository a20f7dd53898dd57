"""The line on stderr that says how far a long command has come."""

from __future__ import annotations

import sys

_COLUMNS = 146
"""A longer line would wrap on a wide terminal, and what wraps is not written over."""


class ProgressLine:
    """On a terminal, each line is written over the last one, unless that one was to stay; elsewhere
    only the lines that stay are printed."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._is_open = False

    def show(self, line: str, stays: bool) -> None:
        if self.live:
            # \r and CSI K: back to the first column, and the row wiped
            text = f"\r\x1b[K{line if stays else line[:_COLUMNS]}"
            print(text, end="\n" if stays else "", file=sys.stderr, flush=True)
        elif stays:
            print(line, file=sys.stderr, flush=True)
        self._is_open = not stays

    def end(self) -> None:
        """What is printed next begins a row of its own."""
        if self.live and self._is_open:
            print(file=sys.stderr)
