"""The property as parsed: declarations and a boolean tree over exact rational arithmetic.

Both VNN-LIB 1.0 and 2.0 parse to a ``Query``. It says what a counterexample is: input tensors for
all networks such that ``assertion`` holds (``unsat`` means that none exist). Numbers are
``Fraction``: exact decimals, never floats. VNN-LIB 1.0 has one network named ``N`` with one flat
input tensor ``X`` and one flat output tensor ``Y`` whose shapes are ``(count,)``; ``X_k`` is
element ``k``.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class TensorDecl:
    """One declared tensor. ``dtype`` is the word of the file (``real``, ``float32`` ...), lower
    case."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    onnx_name: str = ""


@dataclass(frozen=True, slots=True)
class NetworkDecl:
    name: str
    inputs: tuple[TensorDecl, ...]
    outputs: tuple[TensorDecl, ...]
    hidden: tuple[TensorDecl, ...] = ()
    equal_to: str = ""
    isomorphic_to: str = ""


@dataclass(frozen=True, slots=True)
class Const:
    value: Fraction


@dataclass(frozen=True, slots=True)
class Var:
    """Element ``index`` (flat, C order) of the declared tensor ``tensor``."""

    tensor: str
    index: int


@dataclass(frozen=True, slots=True)
class Sum:
    args: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Product:
    args: tuple[Term, ...]


Term = Const | Var | Sum | Product  # a - b parses to Sum(a, Product(-1, b))


@dataclass(frozen=True, slots=True)
class Compare:
    """``left op right`` with ``op`` one of ``<= < == !=`` (``>=`` and ``>`` are stored with sides
    exchanged)."""

    op: str
    left: Term
    right: Term


@dataclass(frozen=True, slots=True)
class And:
    args: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class Or:
    args: tuple[Formula, ...]


Formula = Compare | And | Or


@dataclass(frozen=True, slots=True)
class Query:
    """``version`` is ``(1, 0)`` or ``(2, x)``; it decides the witness format."""

    version: tuple[int, int]
    networks: tuple[NetworkDecl, ...]
    assertion: And
