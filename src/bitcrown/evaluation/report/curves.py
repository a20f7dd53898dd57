"""Accuracy against the radius of the ball, drawn as SVG.

Three curves a network: clean (radius 0) falling to what attacks leave over (an upper bound of the
true robust accuracy) and what is proved (a lower bound). The true accuracy lies in the shaded band
between the last two. Where things lie is computed here, how they look says ``curves.svg.jinja``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitcrown.evaluation.report.templates import filled

if TYPE_CHECKING:
    from markupsafe import Markup

_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 490, 16, 294
_COLOURS = ("#0b6aa2", "#b5461c", "#3c7d3a", "#7a4b9a", "#8a6d00", "#a02b5b")
_LINE_GAP, _WORD_GAP = 14, 44
"""Least distance between two names, and between two radii that are written out."""

_Point = tuple[float, float]


@dataclass(frozen=True)
class AccuracyCurve:
    """Shares in [0, 1] at growing radii; ``verified`` None: nothing was to be proved."""

    name: str
    radii: tuple[float, ...]
    attacked: tuple[float, ...]
    verified: tuple[float | None, ...]


def radius_text(radius: float, norm: str) -> str:
    """As people write it: short decimals, or levels of 255 where these are short (Linf)."""
    level, is_short = radius * 255, abs(radius - round(radius, 3)) < 1e-9
    if norm == "Linf" and not is_short and abs(level * 10 - round(level * 10)) < 1e-4:
        return f"{round(level, 1):g}/255"
    return f"{radius:.4g}"


def accuracy_curves(curves: Sequence[AccuracyCurve], norm: str) -> Markup:
    """The ``<svg>`` element; names are escaped."""
    top = max((max(curve.radii) for curve in curves), default=0.0) or 1.0
    drawn: list[dict[str, Any]] = []
    for number, curve in enumerate(curves):
        # A name stands where its curve ends, or lower where another one stands there.
        end = _y(curve.attacked[-1])
        while any(abs(end - other["end"]) < _LINE_GAP for other in drawn):
            end += 2
        drawn.append({"end": end, "colour": _COLOURS[number % len(_COLOURS)], **_lines(curve, top)})
    radii, last = [], -1e9
    for radius in sorted({radius for curve in curves for radius in curve.radii}):
        x = _x(radius, top)
        is_free = x - last >= _WORD_GAP
        radii.append((x, radius_text(radius, norm) if is_free else ""))
        last = x if is_free else last
    return filled(
        "curves.svg.jinja", curves=drawn, radii=radii, norm=norm, width=_WIDTH, height=_HEIGHT,
        left=_LEFT, right=_RIGHT, bottom=_BOTTOM,
        shares=[(_y(percent / 100), percent) for percent in range(0, 101, 20)],
    )  # fmt: skip


def _lines(curve: AccuracyCurve, top: float) -> dict[str, Any]:
    """The curve's ``name``, its polylines ``attacked`` and ``proved``, the ``band`` between them
    where something was to be proved, and the ``marks`` on both."""
    attacked = zip(curve.radii, curve.attacked, strict=True)
    upper = [(_x(radius, top), _y(share)) for radius, share in attacked]
    verified = zip(upper, curve.verified, strict=True)
    pairs = [(at, share) for at, share in verified if share is not None]
    lower = [(x, _y(share)) for (x, _), share in pairs]
    return {
        "name": curve.name if len(curve.name) <= 20 else curve.name[:19] + "…",
        "attacked": _points(upper),
        "proved": _points(lower),
        "band": _points([*(at for at, _ in pairs), *reversed(lower)]),
        "marks": [*upper, *lower],
    }


def _x(radius: float, top: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * radius / top


def _y(share: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * share


def _points(points: Iterable[_Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
