"""Properties as data: boxes and cases of rows whose numbers are decimal texts, read exactly and
never by bitcrown.

A property asks for a point of the box that satisfies all rows of one case. Variables ``0 .. n-1``
are inputs, ``n ..`` outputs. An input for which no number of its type lies between its two bounds
is read as the scorer reads it: as the number of its type nearest to the middle. (``is_read_off``
says that this happened.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Row:
    """``sum coefficient * variable <= rhs``, or ``>=``."""

    terms: tuple[tuple[int, str], ...]
    op: str
    rhs: str

    def excess(self, values: Sequence[Fraction]) -> Fraction:
        """Not positive exactly where the row holds."""
        total = sum((Fraction(c) * values[i] for i, c in self.terms), Fraction(0)) - Fraction(
            self.rhs
        )
        return total if self.op == "<=" else -total


@dataclass(frozen=True)
class Property:
    lower: tuple[str, ...]
    upper: tuple[str, ...]
    outputs: int
    cases: tuple[tuple[Row, ...], ...]

    @property
    def inputs(self) -> int:
        return len(self.lower)

    def text(self) -> str:
        """VNN-LIB 1.0."""
        lines = [f"(declare-const X_{i} Real)" for i in range(self.inputs)]
        lines += [f"(declare-const Y_{j} Real)" for j in range(self.outputs)]
        for i, (low, up) in enumerate(zip(self.lower, self.upper, strict=True)):
            lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {up}))"]
        cases = [[self._row(row) for row in case] for case in self.cases]
        if len(cases) == 1:
            lines += [f"(assert {row})" for row in cases[0]]
        else:
            lines.append(
                "(assert (or " + " ".join(f"(and {' '.join(case)})" for case in cases) + "))"
            )
        return "\n".join(lines) + "\n"

    def _row(self, row: Row) -> str:
        names = [f"X_{i}" if i < self.inputs else f"Y_{i - self.inputs}" for i, _ in row.terms]
        parts = [
            n if c == "1" else f"(* {c} {n})" for n, (_, c) in zip(names, row.terms, strict=True)
        ]
        return (
            f"({row.op} {parts[0] if len(parts) == 1 else '(+ ' + ' '.join(parts) + ')'} {row.rhs})"
        )


def number(value: float) -> str:
    """A decimal text that means exactly this float, or its shortest form, which reads back as
    it."""
    return repr(float(value))


def inner_ends(low: str, up: str, dtype: Any) -> tuple[float, float, bool]:
    """Least and greatest number of ``dtype`` between two decimals, and whether there is none (then
    the nearest one)."""
    a, b = Fraction(low), Fraction(up)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        first, last = math.ceil(a), math.floor(b)
        if first <= last:
            return float(first), float(last), False
        return float(round((a + b) / 2)), float(round((a + b) / 2)), True
    first, last = _next_to(a, kind, up=True), _next_to(b, kind, up=False)
    if first <= last:
        return first, last, False
    near = float(np.asarray(_float((a + b) / 2)).astype(kind))
    return near, near, True


def _next_to(value: Fraction, kind: np.dtype[Any], up: bool) -> float:
    with np.errstate(over="ignore"):
        near = np.asarray(_float(value)).astype(kind)
    if not np.isfinite(near):
        near = np.asarray(math.copysign(float(np.finfo(kind).max), float(near)), dtype=kind)
    exact = Fraction(float(near))
    if exact != value and (exact < value) == up:
        near = np.nextafter(near, np.asarray(math.inf if up else -math.inf, dtype=kind))
    return float(near)


def _float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


@dataclass(frozen=True)
class Box:
    """The numbers of the input's type in a property's box, ``[n]``; ``off [n]`` marks inputs read
    as nearest."""

    low: Array
    high: Array
    off: Array

    @classmethod
    def of(cls, prop: Property, dtype: Any) -> Box:
        ends = [inner_ends(a, b, dtype) for a, b in zip(prop.lower, prop.upper, strict=True)]
        return cls(
            np.array([e[0] for e in ends]),
            np.array([e[1] for e in ends]),
            np.array([e[2] for e in ends]),
        )

    def point(self, rng: np.random.Generator, dtype: Any, kind: int = -1) -> Array:
        """``[n]`` of ``dtype``: a corner, a point, or the middle."""
        kind = int(rng.integers(3)) if kind < 0 else kind
        share = (
            rng.random(len(self.low)) if kind else (rng.random(len(self.low)) < 0.5).astype(float)
        )
        if kind == 2:
            share = np.where(rng.random(len(self.low)) < 0.5, share, np.round(share))
        return self.nearest(self.low * (1 - share) + self.high * share, dtype)

    def nearest(self, point: Array, dtype: Any) -> Array:
        """``point`` rounded to ``dtype`` and moved into the box."""
        whole = np.rint(point) if np.dtype(dtype).kind in "iu" else point
        with np.errstate(all="ignore"):
            rounded = np.asarray(whole).astype(dtype).astype(np.float64)
            inside: Array = np.clip(rounded, self.low, self.high).astype(dtype)
        return inside


def random_box(
    rng: np.random.Generator, n: int, dtype: Any, scale: float
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Bounds as texts: some pinned, also to decimals that ``dtype`` does not have, some with all
    their digits."""
    width = scale * float(rng.choice([1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0]))
    pinned = float(rng.choice([0.0, 0.0, 0.1, 0.5, 0.9, 0.9]))
    style = int(rng.integers(3))
    lower, upper = [], []
    for centre in rng.normal(size=n) * scale * float(rng.choice([0.0, 0.3, 1.0])):
        half = width * float(rng.random()) / 2
        ends = [centre - half, centre + half]
        if np.dtype(dtype).kind in "iu":
            limits = np.iinfo(dtype)
            reach = max(1.0, 4 * half / scale)
            centre = float(
                np.clip(
                    np.rint(centre / scale * 4),
                    max(limits.min, -1000) + 8,
                    min(limits.max, 1000) - 8,
                )
            )
            ends = [centre - np.rint(reach), centre + np.rint(reach)]
            if style == 1 and pinned:  # decimals that no integer is
                ends = [end + float(rng.choice([0.0, 0.25, -0.375])) for end in ends]
        if rng.random() < pinned:
            ends = [ends[0], ends[0]]
        texts = sorted((_decimal(rng, e, dtype, style) for e in ends), key=Fraction)
        lower.append(texts[0])
        upper.append(texts[1])
    return tuple(lower), tuple(upper)


def _decimal(rng: np.random.Generator, value: float, dtype: Any, style: int) -> str:
    """Style 0: a number of the type; 1: a short decimal; 2: all digits of a float64."""
    if np.dtype(dtype).kind in "iu":
        return f"{value:g}"
    if style == 0:
        with np.errstate(all="ignore"):
            return number(float(np.asarray(value).astype(dtype)))
    return f"{value:.{int(rng.integers(1, 5))}g}" if style == 1 else number(value)


def without_case(prop: Property, index: int) -> Property:
    return replace(prop, cases=prop.cases[:index] + prop.cases[index + 1 :])
