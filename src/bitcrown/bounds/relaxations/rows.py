"""Imports every module that registers relaxation rows. A new operator is one line here and one in the laws."""

from bitcrown.bounds.relaxations import (
    relu,
)

__all__ = ["relu"]
