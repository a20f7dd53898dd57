"""Accuracy against the radius of the ball, drawn as SVG.

Three curves a network: clean (radius 0) falling to what attacks leave over (an upper bound of the
true robust accuracy) and what is proved (a lower bound). The true accuracy lies in the shaded band
between the last two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 150, 16, 46
COLOURS = ("#0b6aa2", "#b5461c", "#3c7d3a", "#7a4b9a", "#8a6d00", "#a02b5b")


@dataclass(frozen=True)
class Curve:
    """Shares in [0, 1] of one network at growing radii; ``verified`` is None where nothing was to
    be proved."""

    name: str
    radii: tuple[float, ...]
    attacked: tuple[float, ...]
    verified: tuple[float | None, ...]


def radius_text(radius: float, norm: str) -> str:
    """As people write it: short decimals as they are, other Linf radii in levels of 255 where these
    are short."""
    level, is_short = radius * 255, abs(radius - round(radius, 3)) < 1e-9
    if norm == "Linf" and not is_short and abs(level * 10 - round(level * 10)) < 1e-4:
        return f"{round(level, 1):g}/255"
    return f"{radius:.4g}"


def accuracy_curves(curves: Sequence[Curve], norm: str) -> str:
    """The ``<svg>`` element; names are escaped."""
    top = max((max(curve.radii) for curve in curves), default=0.0) or 1.0
    parts = [
        f'<svg class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Accuracy '
        'against radius">',
        *_axes(curves, norm, top),
    ]
    ends: list[tuple[float, str]] = []
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        parts += _drawn(curve, colour, top)
        end = _y(curve.attacked[-1])
        while any(abs(end - taken) < 14 for taken, _ in ends):
            end += 2
        ends.append((end, colour))
        place = f'x="{WIDTH - RIGHT + 10}" y="{end + 4:.1f}" fill="{colour}"'
        parts.append(f'<text class="name" {place}>{escape(_short(curve.name))}</text>')
    return "\n".join([*parts, "</svg>"])


def _drawn(curve: Curve, colour: str, top: float) -> list[str]:
    upper = [
        (_x(radius, top), _y(share))
        for radius, share in zip(curve.radii, curve.attacked, strict=True)
    ]
    proved = [
        (_x(radius, top), _y(share), over)
        for radius, share, (_, over) in zip(curve.radii, curve.verified, upper, strict=True)
        if share is not None
    ]
    parts = []
    if proved:
        band = [(x, over) for x, _, over in proved] + [(x, y) for x, y, _ in reversed(proved)]
        parts.append(f'<polygon points="{_points(band)}" fill="{colour}" opacity="0.12"/>')
        parts.append(
            f'<polyline points="{_points([(x, y) for x, y, _ in proved])}" fill="none" '
            f'stroke="{colour}" '
            'stroke-width="2" stroke-dasharray="5 4"/>'
        )
    parts.append(
        f'<polyline points="{_points(upper)}" fill="none" stroke="{colour}" stroke-width="2"/>'
    )
    marks = [*upper, *((x, y) for x, y, _ in proved)]
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in marks]
    return parts


def _axes(curves: Sequence[Curve], norm: str, top: float) -> list[str]:
    parts = []
    for percent in range(0, 101, 20):
        y = _y(percent / 100)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')
    last = -1e9
    for radius in sorted({radius for curve in curves for radius in curve.radii}):
        x = _x(radius, top)
        parts.append(
            f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM}" '
            f'y2="{HEIGHT - BOTTOM + 4}"/>'
        )
        if x - last >= 44:
            word = escape(radius_text(radius, norm))
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{word}</text>'
            )
            last = x
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">radius of the '
        f"{escape(norm)} ball; "
        "line: attacked, dashes: proved, band: open</text>"
    )
    return parts


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"


def _x(radius: float, top: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * radius / top


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
