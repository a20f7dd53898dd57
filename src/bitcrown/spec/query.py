"""The property as parsed: declarations and a boolean tree over exact rational arithmetic.

Both VNN-LIB 1.0 and 2.0 parse to a ``Query``. It says what a counterexample is: input tensors for
all networks such that ``assertion`` holds (``unsat`` means that none exist). Numbers are
``Fraction``: exact decimals, never floats. VNN-LIB 1.0 has one network named ``N`` with one flat
input tensor ``X`` and one flat output tensor ``Y`` whose shapes are ``(count,)``; ``X_k`` is
element ``k``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from bitcrown.spec.exact_vector import ExactVector


@dataclass(frozen=True, slots=True)
class TensorDecl:
    """One declared tensor. ``dtype`` is the word of the file (``real``, ``float32`` ...), lower
    case. ``onnx_name`` names a hidden tensor in the network's file; ``is_initialized`` marks an
    input that keeps the value that the file stores for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    onnx_name: str = ""
    is_initialized: bool = False


@dataclass(frozen=True, slots=True)
class NetworkDecl:
    name: str
    inputs: tuple[TensorDecl, ...]
    outputs: tuple[TensorDecl, ...]
    hidden: tuple[TensorDecl, ...] = ()
    equal_to: str = ""
    isomorphic_to: str = ""

    @property
    def given(self) -> tuple[TensorDecl, ...]:
        """What a counterexample chooses: the inputs without those that keep their stored value."""
        return tuple(tensor for tensor in self.inputs if not tensor.is_initialized)

    @property
    def computed(self) -> tuple[TensorDecl, ...]:
        """What follows from the given tensors, in the order in which they are numbered: outputs,
        hidden tensors, stored inputs."""
        stored = tuple(tensor for tensor in self.inputs if tensor.is_initialized)
        return self.outputs + self.hidden + stored

    @property
    def asks_more(self) -> bool:
        """Whether tensors are computed that are no outputs of the file."""
        return len(self.computed) > len(self.outputs)


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


@dataclass(frozen=True, slots=True, eq=False)
class ManyBounds:
    """A conjunction of many bounds ``<=`` (``is_upper [k]``) or ``>=`` on the elements ``indices
    [k]`` of one tensor: most of a large property, in arrays."""

    tensor: str
    indices: np.ndarray
    is_upper: np.ndarray
    values: ExactVector

    def atoms(self) -> Iterator[Compare]:
        """The same as comparisons, one by one."""
        for index, is_upper, value in zip(
            self.indices.tolist(), self.is_upper.tolist(), self.values, strict=True
        ):
            var, const = Var(self.tensor, index), Const(value)
            yield Compare("<=", var, const) if is_upper else Compare("<=", const, var)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ManyBounds) and list(self.atoms()) == list(other.atoms())

    def __hash__(self) -> int:
        return hash((self.tensor, len(self.indices)))


@dataclass(frozen=True, slots=True, eq=False)
class ManyCases:
    """A disjunction of many small conjunctions, in arrays: case ``c`` has the comparisons
    ``first[c]`` up to ``first[c + 1]``, each ``left <= right``. A side is element ``index [k]`` of
    ``tensors[tensor [k]]`` or, where ``tensor`` is -1, the number ``values [k]``; at most one of
    the two sides is a number."""

    tensors: tuple[str, ...]
    first: np.ndarray
    left_tensor: np.ndarray
    left_index: np.ndarray
    right_tensor: np.ndarray
    right_index: np.ndarray
    values: ExactVector

    def __len__(self) -> int:
        return len(self.first) - 1

    def case(self, place: int) -> And:
        """One of the conjunctions as a tree."""
        atoms = []
        for k in range(int(self.first[place]), int(self.first[place + 1])):
            sides = [
                Const(self.values[k]) if tensor < 0 else Var(self.tensors[tensor], index)
                for tensor, index in (
                    (int(self.left_tensor[k]), int(self.left_index[k])),
                    (int(self.right_tensor[k]), int(self.right_index[k])),
                )
            ]
            atoms.append(Compare("<=", sides[0], sides[1]))
        return And(tuple(atoms))

    @property
    def args(self) -> tuple[And, ...]:
        """All of them, as ``Or`` has them."""
        return tuple(self.case(place) for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ManyCases) and self.args == other.args

    def __hash__(self) -> int:
        return hash((self.tensors, len(self)))


Formula = Compare | And | Or | ManyBounds | ManyCases


@dataclass(frozen=True, slots=True)
class Query:
    """``version`` is ``(1, 0)`` or ``(2, x)``; it decides the witness format."""

    version: tuple[int, int]
    networks: tuple[NetworkDecl, ...]
    assertion: And
