"""VNN-LIB 1.0: ``declare-const X_k Real``, ``declare-const Y_k Real``, ``assert``. One network,
flat variables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from bitcrown.errors import PropertyError
from bitcrown.spec.blocks import DECLARATIONS, TextBlock, declared_numbers
from bitcrown.spec.formula import FormulaReader
from bitcrown.spec.query import And, Formula, NetworkDecl, Query, TensorDecl, Var
from bitcrown.spec.sexpr import Form, Source, shown

_NETWORK_NAME = "N"
_NAME = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})")
# Solver commands of the SMT-LIB heritage that say nothing about the property.
_FEW = 1 << 12
"""Below this number, variables are looked up one by one where they were declared one by one."""
_IGNORED = frozenset({"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"})


def parse_vnnlib1(source: Source, forms: Iterable[Form | TextBlock]) -> Query:
    """Read the forms of a VNN-LIB 1.0 file.

    Raises:
        PropertyError: an unknown command, a name other than X_k or Y_k, a variable declared twice
            or not at all, gaps in the numbering, no input, no output or no assertion.
        UnsupportedError: a connective or function outside VNN-LIB.
    """
    declared = _Declared(source)
    formulas: list[Formula] = []
    reader = FormulaReader(
        source, declared.variables.get, division=True, elements=declared.elements
    )
    for form in forms:
        if isinstance(form, TextBlock):
            if form.kind == DECLARATIONS:
                declared.add_block(form)
            else:
                formulas += reader.asserted(form)
            continue
        head = form.head()
        if head == "assert":
            if len(form) != 2:
                raise source.error(
                    form.offset, f"assert has {len(form) - 1} formulas", "write exactly one"
                )
            formulas.append(reader.read(form[1], form))
        elif head == "declare-const" or head == "declare-fun":
            _declare(source, form, declared.variables)
        elif head not in _IGNORED:
            what = f"{shown(form)} is no VNN-LIB 1.0 command"
            raise source.error(form.offset, what, "use declare-const and assert")
    if not formulas:
        raise PropertyError(
            f"{source.name}: there is no assert, so nothing is asked; add the property."
        )
    inputs, outputs = declared.count("X"), declared.count("Y")
    network = NetworkDecl(
        _NETWORK_NAME, (TensorDecl("X", "real", (inputs,)),), (TensorDecl("Y", "real", (outputs,)),)
    )
    return Query((1, 0), (network,), And(tuple(formulas)))


class _Declared:
    """The declared variables: one by one in ``variables``, and in whole ranges."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.ranges: dict[str, list[range]] = {"X": [], "Y": []}
        self.variables = _Variables(self.ranges)

    def add_block(self, block: TextBlock) -> None:
        """Add a stretch of declarations; ``PropertyError`` if a variable was declared before."""
        is_x, numbers = declared_numbers(self.source.text, block)
        for tensor in ("X", "Y"):
            own = numbers[is_x if tensor == "X" else ~is_x]
            if not len(own):
                continue
            # What is not in rising order without gaps is entered one by one.
            steps = np.flatnonzero(np.diff(own) != 1) + 1
            for part in np.split(own, steps) if len(steps) < len(own) // 8 else own[:, None]:
                self._add(tensor, range(int(part[0]), int(part[-1]) + 1), block)

    def _add(self, tensor: str, numbers: range, block: TextBlock) -> None:
        others = self.ranges[tensor]
        twice = next((r for r in others if r.start < numbers.stop and numbers.start < r.stop), None)
        name = "" if twice is None else f"{tensor}_{max(twice.start, numbers.start)}"
        name = name or next((n for n in self.variables.single(tensor, numbers)), "")
        if name:
            text = self.source.text
            offset = text.rfind(f"(declare-const {name} ", block.start, block.stop)
            raise self.source.error(offset, f"{name} is declared twice", "remove one declaration")
        if len(numbers) > 1:
            others.append(numbers)
        else:
            word = f"{tensor}_{numbers.start}"
            self.variables[word] = Var(tensor, numbers.start)

    def elements(self, prefix: str, indices: np.ndarray) -> tuple[str, np.ndarray] | None:
        """``X_`` and numbers ``[k, 1]``: see ``FormulaReader``."""
        flat = indices[:, 0]
        if prefix not in ("X_", "Y_") or not len(flat):
            return None
        low, high = int(flat.min()), int(flat.max())
        is_known = any(r.start <= low and high < r.stop for r in self.ranges[prefix[0]])
        if not is_known and high < _FEW:
            names = [f"{prefix}{number}" for number in np.unique(flat).tolist()]
            is_known = all(self.variables.get(name) is not None for name in names)
        return (prefix[0], flat) if is_known else None

    def count(self, tensor: str) -> int:
        """How many variables of ``tensor`` there are; ``PropertyError`` for none, or for gaps."""
        kind = "input" if tensor == "X" else "output"
        single = {var.index for var in self.variables.values() if var.tensor == tensor}
        ranges = self.ranges[tensor] + [range(number, number + 1) for number in single]
        if not ranges:
            raise PropertyError(
                f"{self.source.name}: no {kind} is declared; add (declare-const {tensor}_0 Real)."
            )
        due = 0
        for numbers in sorted(ranges, key=lambda numbers: numbers.start):
            if numbers.start > due:
                last = max(numbers.stop for numbers in ranges) - 1
                raise PropertyError(
                    f"{self.source.name}: {tensor}_{due} is not declared although {tensor}_{last} "
                    f"is; declare every {kind} from {tensor}_0 on."
                )
            due = max(due, numbers.stop)
        return due


class _Variables(dict[str, Var]):
    """Variables by name. What a range holds is made when it is asked for, and not kept."""

    def __init__(self, ranges: dict[str, list[range]]) -> None:
        super().__init__()
        self.ranges = ranges

    def get(self, word: str, default: Var | None = None) -> Var | None:  # type: ignore[override]
        """The variable ``word``, or None."""
        found = super().get(word)
        match = _NAME.fullmatch(word) if found is None else None
        if match is not None and any(int(match[2]) in r for r in self.ranges[match[1]]):
            return Var(match[1], int(match[2]))
        return found or default

    def single(self, tensor: str, numbers: range) -> Iterator[str]:
        """Names of the variables of ``tensor`` in ``numbers`` that were declared one by one."""
        if len(numbers) < len(self):
            yield from (n for n in (f"{tensor}_{k}" for k in numbers) if n in self)
        else:
            yield from (n for n, v in self.items() if v.tensor == tensor and v.index in numbers)


def _declare(source: Source, form: Form, declared: _Variables) -> None:
    is_function = form[0] == "declare-fun"
    if len(form) != 3 + is_function or (is_function and form[2] != Form()) or form[-1] != "Real":
        raise source.error(
            form.offset,
            f"{shown(form)} declares no real variable",
            "write (declare-const X_0 Real)",
        )
    name = form[1]
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        what = f"the name {shown(name)!r} is neither X_k nor Y_k"
        raise source.error(
            form.offset, what, "number the inputs X_0, X_1 ... and the outputs Y_0, Y_1 ..."
        )
    if declared.get(match[0]) is not None:
        raise source.error(form.offset, f"{match[0]} is declared twice", "remove one declaration")
    declared[match[0]] = Var(match[1], int(match[2]))
