"""A question in Python instead of VNN-LIB: declare tensors, assume, prove.

ask = bitcrown.Property()
x, y = ask.input("x", [1, 5]), ask.output("y", [1, 3])
ask.assume(x >= -1, x <= 1)
ask.prove(y[0, 0] > y[0, 2])
verdict = bitcrown.verify(bitcrown.load("net.onnx", ask))      # unsat: proved

A counterexample satisfies every assumption and violates at least one of the goals: the assertions
of the VNN-LIB text are the assumptions and one ``or`` of the negated goals. ``load`` reads that
very text, so a property in memory and its file are the same property.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bitcrown.errors import PropertyError
from bitcrown.spec.element_types import ELEMENT_TYPES
from bitcrown.spec.printer import print_query
from bitcrown.spec.query import And, Formula, NetworkDecl, Or, Query, TensorDecl
from bitcrown.spec.reader import parse_query
from bitcrown.spec.robustness import NETWORK
from bitcrown.spec.symbols import Condition, Declared, Symbols, joined_conditions

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_MAX_ELEMENTS = 1 << 22


@dataclass
class _Tensors:
    """What is declared of one network so far."""

    inputs: list[TensorDecl] = field(default_factory=list)
    hidden: list[TensorDecl] = field(default_factory=list)
    outputs: list[TensorDecl] = field(default_factory=list)
    equal_to: str = ""
    isomorphic_to: str = ""


class Property:
    """What is assumed of inputs and outputs, and what is to be proved of them.

    Declare every input and output of the ONNX file, in the file's order. ``dtype`` is a type of
    VNN-LIB, the same for all tensors that are compared: ``real`` (any numbers), ``float32`` ...
    """

    def __init__(self) -> None:
        self._declared = Declared()
        self._networks: dict[str, _Tensors] = {}
        self._assumed: list[Condition] = []
        self._goals: list[Condition] = []

    def network(self, name: str, *, equal_to: str = "", isomorphic_to: str = "") -> None:
        """Say of a network that it is the same file as one declared before (``equal_to``; then it
        needs no file of its own), or has its graph with other weights (``isomorphic_to``). Networks
        of which nothing is said are independent. Raises ``PropertyError``."""
        found = self._network(name)
        found.equal_to, found.isomorphic_to = equal_to, isomorphic_to
        for base in filter(None, (equal_to, isomorphic_to)):
            if base not in self._networks or base == name or (equal_to and isomorphic_to):
                raise PropertyError(
                    f"network {name} can be equal or isomorphic to one that is declared before"
                )

    def input(
        self, name: str, shape: Sequence[int], *, network: str = NETWORK, dtype: str = "real"
    ) -> Symbols:
        """An input of ``network``. Raises ``PropertyError`` for a name that is taken or none, and
        for what is no shape or type."""
        return self._new(self._network(network).inputs, name, shape, dtype)

    def output(
        self, name: str, shape: Sequence[int], *, network: str = NETWORK, dtype: str = "real"
    ) -> Symbols:
        """An output of ``network``; as ``input``."""
        return self._new(self._network(network).outputs, name, shape, dtype)

    def hidden(
        self,
        name: str,
        shape: Sequence[int],
        onnx_name: str,
        *,
        network: str = NETWORK,
        dtype: str = "real",
    ) -> Symbols:
        """The tensor ``onnx_name`` inside the file of ``network``; as ``input``."""
        if not onnx_name or '"' in onnx_name or "\n" in onnx_name:
            raise PropertyError(f"{onnx_name!r} is no name of a tensor in an ONNX file")
        return self._new(self._network(network).hidden, name, shape, dtype, onnx_name)

    def assume(self, *conditions: Condition) -> None:
        """Conditions, all of which a counterexample satisfies. Raises ``PropertyError``."""
        self._assumed += [self._own(condition) for condition in conditions]

    def prove(self, *conditions: Condition) -> None:
        """Conditions that are to hold wherever the assumptions do; a counterexample violates one of
        them. (Whether something can happen at all is: prove that it does not.) Raises
        ``PropertyError``."""
        self._goals += [self._own(condition) for condition in conditions]

    @staticmethod
    def all(conditions: Iterable[Condition]) -> Condition:
        """Every one of ``conditions``; ``PropertyError`` for none."""
        return joined_conditions(And, list(conditions))

    @staticmethod
    def any(conditions: Iterable[Condition]) -> Condition:
        """At least one of ``conditions``; ``PropertyError`` for none."""
        return joined_conditions(Or, list(conditions))

    def text(self) -> str:
        """The property as a VNN-LIB 2.0 file, every number exact.

        Raises ``PropertyError`` if nothing is asked, or a network lacks inputs or outputs.
        """
        asserted: list[Formula] = []
        for condition in self._assumed:
            formula = condition.formula
            asserted += formula.args if isinstance(formula, And) else (formula,)
        if self._goals:
            asserted.append((~self.all(self._goals)).formula)
        if not asserted:
            raise PropertyError("nothing is asked: call assume or prove with conditions first")
        networks = []
        for name, found in self._networks.items():
            if not found.inputs or not found.outputs:
                what = "outputs" if found.inputs else "inputs"
                raise PropertyError(f"network {name} has no {what}; declare all that its file has")
            inputs, outputs, hidden = map(tuple, (found.inputs, found.outputs, found.hidden))
            relation = found.equal_to, found.isomorphic_to
            networks.append(NetworkDecl(name, inputs, outputs, hidden, *relation))
        return print_query(Query((2, 0), tuple(networks), And(tuple(asserted))))

    __str__ = text

    def query(self) -> Query:
        """The property as its file is read. Raises ``PropertyError`` and ``UnsupportedError`` for
        what the reader refuses, such as a comparison of two types."""
        return parse_query(self.text(), "the property")

    def _network(self, name: str) -> _Tensors:
        if name not in self._networks:
            self._require_new(name)
            self._networks[name] = _Tensors()
        return self._networks[name]

    def _require_new(self, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PropertyError(f"{name!r} is no name: letters, digits and _, a letter first")
        if name in self._networks or name in self._declared.tensors:
            raise PropertyError(f"{name} is declared twice; names are unique in a property")

    def _new(
        self,
        row: list[TensorDecl],
        name: str,
        shape: Sequence[int],
        dtype: str,
        onnx_name: str = "",
    ) -> Symbols:
        self._require_new(name)
        if dtype not in ELEMENT_TYPES:
            raise PropertyError(f"{dtype!r} is no element type; use 'real' or 'float32'")
        extents = _shape_of(shape)
        tensor = TensorDecl(name, dtype, extents, onnx_name)
        self._declared.tensors[name] = tensor
        row.append(tensor)
        return Symbols.of_tensor(tensor, self._declared)

    def _own(self, condition: object) -> Condition:
        found = joined_conditions(And, [condition])
        if found.declared is not self._declared:
            raise PropertyError("the condition is about symbols of another property")
        return found


def _shape_of(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        given = tuple(shape)
        extents = tuple(int(extent) for extent in given)
    except (TypeError, ValueError):
        given, extents = (0,), (0,)
    count = 1
    for extent in extents:
        count *= extent
    if given != extents or min(extents, default=1) < 1 or count > _MAX_ELEMENTS:
        raise PropertyError(
            f"{shape!r} is no shape: whole numbers from 1 on, such as [1, 5], with at most "
            f"{_MAX_ELEMENTS} elements"
        )
    return extents
