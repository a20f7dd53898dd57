"""Stretches of plain bounds: found alike, however the pattern has to be written."""

from __future__ import annotations

import re

import pytest

from bitcrown.spec import blocks


@pytest.mark.parametrize("bounds", [0, 1, 15, 16, 50])
@pytest.mark.parametrize("last", ["(<= Y_0 Y_1)", "(or (and (<= Y_0 Y_1)) (and (>= Y_0 3)))", ""])
def test_both_ways_of_writing_the_pattern_find_the_same(bounds: int, last: str) -> None:
    """One is for Pythons that match possessive groups wrongly."""
    lines = [
        f"(assert ({sign} X_{k} -0.5e-3)) ; note\n" for k in range(bounds) for sign in ("<=", ">=")
    ]
    case = "".join(f"(<= X_{k} 1.{k})" for k in range(bounds))
    declared = "".join(f"(declare-const X_{k} Real)\n" for k in range(bounds))
    cases = f"(assert (or (and {case}) (and {case}(<= X_0 Y_0))))"
    text = f"{declared}{''.join(lines)}{cases}(assert {last})"
    found = []
    for may_possess in (True, False):
        pattern = re.compile(blocks.block_pattern(may_possess))
        matches = pattern.finditer(text)
        found.append([(match.lastindex, match.start(), match.end()) for match in matches])
    assert found[0] == found[1]
    assert bool(found[0]) == (bounds > 7)
