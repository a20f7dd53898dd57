"""Imports every module that registers relaxation rows. A new operator is one line here and one in the laws."""

from bitcrown.bounds.relaxations import (
    convex,
    product,
    relu,
    s_shaped,
)

__all__ = ["convex", "product", "relu", "s_shaped"]
