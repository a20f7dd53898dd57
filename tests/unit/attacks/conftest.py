"""Suites small enough for tests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitcrown.attacks.images import components, victim
from bitcrown.attacks.images.components import SUITES, Component


@pytest.fixture
def short_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same components with small budgets, and six images in every call."""
    monkeypatch.setattr(victim, "CPU_ROWS", 6)
    for name in SUITES:
        monkeypatch.setitem(SUITES, name, tuple(_short(component) for component in SUITES[name]))
    monkeypatch.setattr(
        components, "_STANDARD_L1", tuple(_short(part) for part in components._STANDARD_L1)
    )


def _short(component: Component) -> Component:
    return replace(
        component,
        budget=20 if component.budget == 5000 else 6,
        restarts=min(component.restarts, 2),
        targets=min(component.targets, 9),
        repeats=min(component.repeats, 2),
    )
