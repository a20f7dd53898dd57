"""Which radius to ask next, and radii in words.

A proof at a radius is one at every smaller radius, and a counterexample one at every larger. What
is open at a radius says nothing of others, so there are two bisections: between the largest proved
radius and the least that is not, and between the largest open radius and the smallest broken one.
"""

from __future__ import annotations

from fractions import Fraction

from bitcrown.spec.decimals import short_text

_FINE = Fraction(21, 20)
"""Radii whose ratio is smaller are not told apart."""
_SMALLEST = Fraction(1, 10**6)


def radius_words(eps: Fraction) -> str:
    """``8/255``, ``0.1``, or the nearest numbers to something longer, in levels of a picture,
    too."""
    levels, text = eps * 255, short_text(eps)
    is_decimal = "/" not in text
    if is_decimal and len(text) <= 4:  # 0.2 rather than 51/255
        return text
    if levels.denominator == 1 and 0 < levels < 255:
        return f"{levels}/255"
    if is_decimal and len(text) <= 8:
        return text
    return f"{float(eps):.6g} ({float(levels):.4g}/255)"


def next_radius(
    proved: Fraction | None,
    broken: Fraction | None,
    opened: list[Fraction],
    top: Fraction | None,
) -> Fraction | None:
    """The radius to ask next; None where both ends are known well enough."""
    above = [eps for eps in opened if proved is None or eps > proved]
    low_end = min([*above, *([] if broken is None else [broken])], default=None)
    # Upwards, while nothing limits the proof but the range of values.
    if low_end is None:
        assert proved is not None
        if top is not None and proved >= top:
            return None
        return 2 * proved if top is None else min(2 * proved, top)
    high_open = max(above, default=None)
    # A counterexample costs less than a proof, and bounds what is to be proved.
    if broken is None and high_open is not None:
        following = 2 * high_open if top is None else min(2 * high_open, top)
        if following > high_open:
            return following
    # The proof's end: between it and the least radius that is not proved.
    if proved is None:
        if low_end > _SMALLEST:
            return low_end / 2
    elif low_end > proved * _FINE:
        return (proved + low_end) / 2
    # Then the counterexample's: between the largest open radius and the smallest broken one.
    if high_open is None or broken is None:
        return None
    return (high_open + broken) / 2 if broken > high_open * _FINE else None
