"""What one search may spend, and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """``root_steps``/``steps``: ascent steps per round at depth 0 / below, ``length`` of the first;
    ``batch``: rows per round at most; ``enumerate_points``: a box with so few is tried out;
    ``climbs`` of ``moves`` moves each look for a witness in every round."""

    root_steps: int = 160
    steps: int = 60
    length: float = 1.0
    batch: int = 64
    enumerate_points: int = 4096
    climbs: int = 3
    moves: int = 12


@dataclass(eq=False)
class SearchCounters:
    """``closed``: subproblems refuted (``enumerated``: those by trying all inputs); ``candidates``:
    averaged inputs tried; ``open``: subproblems left after the last round."""

    rounds: int = 0
    closed: int = 0
    splits: int = 0
    enumerated: int = 0
    candidates: int = 0
    max_depth: int = 0
    open: int = 0
