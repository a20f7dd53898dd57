"""Weights that are sums of products of others: the real numbers, rounded as bounds expect it.

A pass may be wrong by a share of each weight, ``gamma |w|`` with ``gamma = k u``, where ``k`` is
four times the longest sum (``bounds.rounding``), itself at least 64 and the number of weights of a
node. What a product of matrices ``V W`` is wrong by is a share of ``|V| |W|``, though: of an entry
whose terms cancel that may be all there is, and then its sign is that of the rounding.

So an entry ``s`` of ``n`` terms that add up to ``t`` in absolute value is taken as computed where
``n t u`` is at most half of one longest sum's share, ``max(64, size) u |s| / 2``. Any other is
computed anew: products as pairs of numbers, exactly (Dekker, *A floating-point technique for
extending the available precision*, 1971), and their sum rounded once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_Array = np.ndarray[Any, Any]

_LEAST_SUM = 64
_SPLITTER = float((1 << 27) + 1)
_RANGE = 2.0**-400, 2.0**400
"""Sizes of factors whose products, and what those are rounded by, neither over- nor underflow."""
_AT_ONCE = 1 << 22


def product_of_weights(outer: _Array, inner: _Array) -> _Array | None:
    """``V W`` in float64; None where numbers are too large or too small for that."""
    if not (is_moderate(outer, inner)):
        return None
    found: _Array = outer @ inner
    sizes, terms = np.abs(outer) @ np.abs(inner), outer.shape[1]
    share = max(_LEAST_SUM, found.size) / 2
    rows, columns = (terms * sizes > share * np.abs(found)).nonzero()
    step = max(1, _AT_ONCE // max(1, terms))
    for start in range(0, len(rows), step):
        row, column = rows[start : start + step], columns[start : start + step]
        parts = np.concatenate(_exact_products(outer[row], inner.T[column]), axis=1)
        found[row, column] = [math.fsum(part) for part in parts.tolist()]
    return found


def sums_of_weights(weights: _Array, place: _Array) -> _Array | None:
    """Rows of ``weights [N, m]`` added up at ``place [N]``, each sum rounded once: ``[N, m]``; None
    where numbers are too large."""
    if not is_moderate(weights):
        return None
    found = np.zeros_like(weights)
    np.add.at(found, place, weights)
    for row in np.flatnonzero(np.bincount(place, minlength=len(weights)) > 2).tolist():
        found[row] = [math.fsum(column) for column in weights[place == row].T.tolist()]
    return found


def is_moderate(*numbers: _Array) -> bool:
    """Whether products of any two of the numbers keep all their digits: no product that is merged
    may overflow, or be lost below the smallest normal number, where the network's own did not."""
    sizes = [np.abs(part[part != 0]) for part in map(np.asarray, numbers)]
    return all(bool(((part >= _RANGE[0]) & (part <= _RANGE[1])).all()) for part in sizes)


def _exact_products(one: _Array, other: _Array) -> tuple[_Array, _Array]:
    """``p`` and ``e`` with ``p + e`` the product of two float64 numbers."""
    product = one * other
    (high, low), (top, rest) = _halves(one), _halves(other)
    error = ((high * top - product) + high * rest + low * top) + low * rest
    return product, error


def _halves(value: _Array) -> tuple[_Array, _Array]:
    """Two numbers of 26 bits whose sum is ``value``."""
    scaled = _SPLITTER * value
    high = scaled - (scaled - value)
    return high, value - high
