"""Extents that a network file leaves open (``[batch, 3, h, w]``), settled by what a property
declares.

VNN-LIB 2 declares shapes: one with as many axes is the shape itself. VNN-LIB 1 declares a number of
elements, which settles one open extent beside the batch; of several it says nothing, and they are
taken for 1. What is left unsettled has another number of elements than the property, so it is
refused and never decided as another network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def settled_shape(
    extents: Sequence[object], declared: tuple[int, ...], has_shapes: bool
) -> tuple[int, ...]:
    """``extents`` as onnxruntime names them (numbers, names, None), with numbers in every place."""
    is_open = [not (isinstance(extent, int) and extent > 0) for extent in extents]
    found = [1 if free else int(str(extent)) for extent, free in zip(extents, is_open, strict=True)]
    pairs = list(zip(found, declared, is_open, strict=False))
    if has_shapes and len(declared) == len(found):
        if all(free or mine == theirs for mine, theirs, free in pairs):
            return declared
        return tuple(found)
    first = 1 if len(found) > 1 else 0
    inner = [place for place in range(first, len(found)) if is_open[place]]
    known, wanted = math.prod(found), math.prod(declared)
    if len(inner) == 1 and wanted and known and wanted % known == 0:
        found[inner[0]] = wanted // known
    return tuple(found)


def extents_words(shapes: Sequence[Sequence[object]]) -> tuple[str, str]:
    """The names of the open extents of inputs but the first of each (of the batch), and the shape
    of the first input that has one, as somebody would type it. Both empty where none is open."""
    names: dict[str, None] = {}
    typed = ""
    for extents in shapes:
        free = [str(extent or "?") for extent in extents[1:] if not isinstance(extent, int)]
        if free and not typed:
            rest = [str(extent or "?") for extent in extents[1:]]
            typed = ",".join(["1" if not isinstance(extents[0], int) else str(extents[0]), *rest])
        names |= dict.fromkeys(free)
    return ", ".join(names), typed
