"""Why there is no answer, and what to try: in sentences, from what a run tells of itself.

Nothing here is known of a benchmark. What is said follows from the reason, the seconds of each
phase, and the counters: how many cases, boxes or domains are open, and how far the worst bound is
from the zero at which it would be excluded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bitcrown.verdict import Reason, Status

if TYPE_CHECKING:
    from bitcrown.harness.watchdog import Watched
    from bitcrown.verdict import Verdict

_READING = ("spawn", "start", "import", "probe", "read")
_WHOLE_BOX = ("root bounds", "alpha", "layers")


@dataclass(frozen=True)
class Ending:
    """How a run ended. ``facts``: what its last phase said of itself (see ``fact_words``)."""

    status: Status
    reason: str = ""
    detail: str = ""
    decided_by: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, verdict: Verdict) -> Ending:
        return cls(
            verdict.status,
            str(verdict.reason),
            verdict.detail,
            verdict.decided_by,
            verdict.phases,
            verdict.counters,
        )

    @classmethod
    def of_watched(cls, seen: Watched) -> Ending:
        """What the worker told at its end, or what it had told until it was ended."""
        answer = seen.answer
        facts = seen.progress.get("facts", {})
        return cls(
            answer.status,
            answer.reason,
            answer.detail,
            answer.decided_by,
            answer.phases or seen.phases,
            answer.counters or seen.counters,
            facts if isinstance(facts, dict) else {},
        )

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: see ``docs/json.md``."""
        return {
            "status": self.status.value,
            "reason": self.reason,
            "detail": self.detail,
            "decided_by": self.decided_by,
            "phases": dict(self.phases),
            "counters": dict(self.counters),
            "explanation": explanation(self),
        }


def explanation(ending: Ending) -> list[str]:
    """Sentences about an ``unknown`` or ``timeout``; nothing about answers."""
    if ending.status not in (Status.UNKNOWN, Status.TIMEOUT):
        return []
    return [said for said in (_time(ending), _open(ending), f"try: {_advice(ending)}") if said]


def _time(ending: Ending) -> str:
    spent = sorted(ending.phases.items(), key=lambda item: -item[1])
    shown = [f"{name} {seconds:.1f} s" for name, seconds in spent[:3] if seconds >= 0.05]
    return f"time: {', '.join(shown)}" if shown else ""


def _open(ending: Ending) -> str:
    known = {**ending.counters, **ending.facts}
    parts: list[str] = []
    for name, text in (
        ("open", "{} domains are open"),
        ("boxes_left", "{} boxes are open"),
        ("left", "{} boxes are open"),
    ):
        if isinstance(known.get(name), int) and not parts:
            parts.append(text.format(known[name]))
    done = known.get("domains", known.get("boxes_bounded", known.get("boxes_done")))
    if parts and isinstance(done, int):
        parts.append(f"{done} were bounded")
    if not parts:
        names = ("open_after_layers", "open_after_alpha", "open_after_crown")
        left = next((known[name] for name in names if isinstance(known.get(name), int)), None)
        total = known.get("cases")
        if left is not None:
            parts.append(f"{left} of {total} cases are open" if total else f"{left} cases are open")
    worst = known.get("worst")
    if isinstance(worst, float) and math.isfinite(worst) and worst < 0:
        parts.append(f"the worst bound is {worst:.3g} (0 would do)")
    return f"open: {', '.join(parts)}" if parts else ""


def _advice(ending: Ending) -> str:
    """The next thing to change, by the reason and by the phase that took the most."""
    if ending.reason == Reason.UNSUPPORTED:
        return "bitcrown inspect, which lists what has no rule; export without it, or file an issue"
    if ending.reason == Reason.MEMORY:
        return "a larger --memory-gib on a larger machine, or a smaller box"
    if ending.reason == Reason.NUMERICS:
        return "a smaller box, or the network in float32: values overflow in its number type"
    if ending.reason == Reason.REPLAY:
        return "--semantics runtime, or a larger box: the property is decided by rounding"
    if ending.reason == Reason.INCOMPLETE:
        return "a smaller box, or its parts one by one: more time does not help"
    if ending.reason == Reason.CRASHED:
        return "--record FILE, which keeps the last words of the worker, and file an issue"
    longest = max(ending.phases, key=lambda name: ending.phases[name], default="")
    if longest in _READING:
        return "a longer --timeout: the time went into reading the network, not into the search"
    if longest in _WHOLE_BOX:
        return "a longer --timeout, a smaller box, or --device cuda: one pass of bounds takes long"
    return "a longer --timeout, or a smaller box"


def fact_words(facts: Mapping[str, Any]) -> str:
    """What a phase says of itself, for a line of progress."""
    words = {
        "domains": "bounded",
        "open": "open",
        "boxes": "bounded",
        "left": "open",
        "cells": "cells run",
    }
    shown = [
        f"worst bound {value:.3g}" if name == "worst" else f"{value} {words.get(name, name)}"
        for name, value in facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return ", ".join(shown)
