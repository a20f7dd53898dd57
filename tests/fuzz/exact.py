"""Piecewise linear networks on one or two inputs that vary, cut in rationals into the polygons
where they are affine.

A value is an affine function ``(c, a, b)``, that is ``c + a s + b t``, of the two varying inputs
``s`` and ``t``. A neuron whose argument changes sign in a polygon cuts it in two; the rest of the
network is followed in both. What remains at the end is the network, exactly: its least values lie
in corners, and a case holds somewhere iff a polygon clipped by the rows of the case is not empty.
Polygons are closed, so boundaries count, as they must for ``<=``.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from tests.fuzz.properties import Property, Row

Affine = tuple[Fraction, Fraction, Fraction]
Corner = tuple[Fraction, Fraction]
Polygon = list[Corner]
Piece = tuple[Polygon, list[Affine]]
ZERO: Affine = (Fraction(0), Fraction(0), Fraction(0))
OPERATORS = ("Gemm", "MatMul", "Add", "Sub", "Relu", "LeakyRelu", "Abs", "Neg", "Identity")
MOST_PIECES = 400


class TooMany(Exception):
    """The network has more pieces than are worth the time."""


def at(form: Affine, corner: Corner) -> Fraction:
    return form[0] + form[1] * corner[0] + form[2] * corner[1]


def combined(*parts: tuple[Fraction, Affine]) -> Affine:
    c, a, b = (sum((w * f[k] for w, f in parts), Fraction(0)) for k in range(3))
    return c, a, b


def clipped(polygon: Polygon, form: Affine) -> Polygon:
    """The part where ``form <= 0`` (Sutherland and Hodgman, 1974); points and segments stay what
    they are."""
    result: Polygon = []
    for k, corner in enumerate(polygon):
        before = polygon[k - 1]
        here, there = at(form, corner), at(form, before)
        if (here > 0) != (there > 0) and here and there:
            share = there / (there - here)
            result.append(
                (
                    before[0] + share * (corner[0] - before[0]),
                    before[1] + share * (corner[1] - before[1]),
                )
            )
        if here <= 0:
            result.append(corner)
    return list(dict.fromkeys(result))


def box_polygon(prop: Property) -> tuple[Polygon, list[Affine]]:
    """The box as a polygon, and the inputs as functions of the two that vary. Raises ``TooMany`` if
    more do."""
    low, high = [Fraction(v) for v in prop.lower], [Fraction(v) for v in prop.upper]
    moving = [i for i in range(prop.inputs) if low[i] < high[i]]
    if len(moving) > 2:
        raise TooMany(f"{len(moving)} inputs vary")
    forms = [(value, Fraction(0), Fraction(0)) for value in low]
    for place, i in enumerate(moving):
        forms[i] = (Fraction(0), Fraction(int(place == 0)), Fraction(int(place == 1)))
    ends = [(low[i], high[i]) for i in moving] + [(Fraction(0), Fraction(0))] * (2 - len(moving))
    (a, b), (c, d) = ends
    return list(dict.fromkeys([(a, c), (b, c), (b, d), (a, d)])), forms


class Pieces:
    """The pieces of one network over a property's box."""

    def __init__(self, model: Any, prop: Property) -> None:
        self.nodes = list(model.graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.count = 0
        polygon, forms = box_polygon(prop)
        self.pieces: list[Piece] = list(self._follow(0, {"x": forms}, polygon))
        self.inputs = forms

    def _follow(
        self, place: int, values: dict[str, list[Affine]], polygon: Polygon
    ) -> Iterator[Piece]:
        if place == len(self.nodes):
            self.count += 1
            if self.count > MOST_PIECES:
                raise TooMany("too many pieces")
            yield polygon, values["y"]
            return
        node = self.nodes[place]
        if node.op_type in ("Relu", "LeakyRelu", "Abs"):
            slope = {"Relu": Fraction(0), "Abs": Fraction(-1)}.get(node.op_type)
            if slope is None:
                slope = Fraction(float(next(a.f for a in node.attribute)))
            for part, forms in self._bent(values[node.input[0]], slope, polygon):
                yield from self._follow(place + 1, {**values, node.output[0]: forms}, part)
            return
        yield from self._follow(
            place + 1, {**values, node.output[0]: self._affine(node, values)}, polygon
        )

    def _bent(
        self, forms: list[Affine], slope: Fraction, polygon: Polygon
    ) -> Iterator[tuple[Polygon, list[Affine]]]:
        """``x`` where it is not negative, ``slope x`` where it is not positive, element by
        element."""
        todo: list[tuple[Polygon, list[Affine]]] = [(polygon, [])]
        for form in forms:
            split = []
            for part, done in todo:
                ends = [at(form, corner) for corner in part]
                if max(ends) > 0:
                    split.append((clipped(part, combined((Fraction(-1), form))), [*done, form]))
                if max(ends) <= 0 or min(ends) < 0:
                    split.append((clipped(part, form), [*done, combined((slope, form))]))
            todo = [piece for piece in split if piece[0]]
            if len(todo) > MOST_PIECES:
                raise TooMany("too many pieces")
        yield from todo

    def _affine(self, node: Any, values: dict[str, list[Affine]]) -> list[Affine]:
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Identity", "Neg"):
            sign = Fraction(-1 if node.op_type == "Neg" else 1)
            return [combined((sign, form)) for form in values[node.input[0]]]
        if node.op_type in ("Add", "Sub"):
            left, right = (self._operand(name, values) for name in node.input)
            left, right = (
                left * len(right) if len(left) == 1 else left,
                right * len(left) if len(right) == 1 else right,
            )
            sign = Fraction(1 if node.op_type == "Add" else -1)
            return [combined((Fraction(1), a), (sign, b)) for a, b in zip(left, right, strict=True)]
        weight = self.constants[node.input[1]].astype(object)
        weight = weight.T if attrs.get("transB", 0) else weight
        forms = values[node.input[0]]
        alpha, beta = (
            Fraction(float(attrs.get("alpha", 1.0))),
            Fraction(float(attrs.get("beta", 1.0))),
        )
        columns = [[Fraction(float(w)) * alpha for w in column] for column in weight.T]
        result = [combined(*zip(column, forms, strict=True)) for column in columns]
        if len(node.input) > 2:
            bias = self.constants[node.input[2]].reshape(-1)
            result = [
                combined(
                    (Fraction(1), form), (beta, (Fraction(float(b)), Fraction(0), Fraction(0)))
                )
                for form, b in zip(
                    result, np.broadcast_to(bias, (len(result),)).tolist(), strict=True
                )
            ]
        return result

    def _operand(self, name: str, values: dict[str, list[Affine]]) -> list[Affine]:
        if name in values:
            return values[name]
        return [
            (Fraction(float(v)), Fraction(0), Fraction(0))
            for v in self.constants[name].reshape(-1).tolist()
        ]

    # -- questions ---------------------------------------------------------------------------------

    def least(self, row: Row) -> tuple[Fraction, Corner]:
        """The least value of the row's left side (the greatest for ``>=``) and a corner where it is
        attained."""
        sign = 1 if row.op == "<=" else -1
        found = [
            (sign * at(self._form(row, outputs), corner), corner)
            for polygon, outputs in self.pieces
            for corner in polygon
        ]
        value, corner = min(found)
        return sign * value, corner

    def values(self, corner: Corner) -> list[Fraction]:
        """Inputs and outputs [n + m] at a point of the box."""
        outputs = next(forms for polygon, forms in self.pieces if corner in polygon)
        return [at(form, corner) for form in (*self.inputs, *outputs)]

    def witness(self, prop: Property) -> list[Fraction] | None:
        """An input [n] that satisfies a case, in rationals; None if there is none."""
        for case in prop.cases:
            for polygon, outputs in self.pieces:
                part = polygon
                for row in case:
                    form = self._form(row, outputs)
                    shifted = combined(
                        (Fraction(1), form), (Fraction(-1), (Fraction(row.rhs), ZERO[0], ZERO[0]))
                    )
                    part = clipped(
                        part, shifted if row.op == "<=" else combined((Fraction(-1), shifted))
                    )
                    if not part:
                        break
                if part:
                    return [at(form, part[0]) for form in self.inputs]
        return None

    def _form(self, row: Row, outputs: list[Affine]) -> Affine:
        n = len(self.inputs)
        return combined(
            *((Fraction(c), self.inputs[i] if i < n else outputs[i - n]) for i, c in row.terms)
        )
