"""Forms to formulas: what VNN-LIB 1.0 and 2.0 have in common. Written with explicit stacks, never
by recursion."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TypeGuard

import numpy as np

from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.spec.blocks import SMALL_CASES, BlockReader, TextBlock
from bitcrown.spec.decimals import parse_decimal
from bitcrown.spec.element_types import type_complaint
from bitcrown.spec.query import (
    And,
    Compare,
    Const,
    Formula,
    ManyBounds,
    ManyCases,
    Or,
    Product,
    Sum,
    Term,
    Var,
)
from bitcrown.spec.sexpr import Form, Source, read_forms, shown
from bitcrown.spec.small_cases import small_cases

_COMPARE = {  # word -> (stored operator, sides exchanged)
    "<=": ("<=", False),
    ">=": ("<=", True),
    "<": ("<", False),
    ">": ("<", True),
    "=": ("==", False),
    "==": ("==", False),
    "!=": ("!=", False),
}
_NEGATED = {"<=": "<", "<": "<=", "==": "!=", "!=": "=="}
_ARITHMETIC = ("+", "-", "*", "/")
_KNOWN_BUT_UNSUPPORTED = (
    "xor",
    "ite",
    "let",
    "distinct",
    "forall",
    "exists",
    "abs",
    "^",
    "div",
    "mod",
)
_MINUS_ONE = Const(Fraction(-1))
_MAX_CACHE = 1 << 19


class FormulaReader:
    """Reads the formulas of one file. ``variable(word)`` gives a declared variable, ``None``, or
    raises ``ValueError``. With ``type_of``, which gives a variable's declared type, every
    comparison has to be well typed. ``elements(prefix, indices [k, rank])`` gives the tensor and
    flat indices ``[k]`` of what begins so, all of them declared and of a type without limits; or
    None, and each is looked at by itself.

    Equal words give the same ``Const`` and ``Var`` objects, which saves time and memory in large
    files.
    """

    def __init__(
        self,
        source: Source,
        variable: Callable[[str], Var | None],
        division: bool,
        type_of: Callable[[str], str] | None = None,
        elements: Callable[[str, np.ndarray], tuple[str, np.ndarray] | None] | None = None,
    ) -> None:
        self._source = source
        self._variable = variable
        self._division = division
        self._type_of = type_of
        self._elements = elements
        self._blocks = BlockReader(source.text)
        self._atoms: dict[str, Term] = {}

    def read(self, node: Form | str | TextBlock, parent: Form, turned: bool = False) -> Formula:
        """The formula that ``node`` writes, or what it denies if it is ``turned``; ``parent`` is
        the form that holds it.

        Raises:
            PropertyError: not a formula, or it names something undeclared.
            UnsupportedError: a connective or function outside VNN-LIB.
        """
        if not _is_connective(node):
            return self._leaf(node, parent, turned)
        # ``negated``: a ``not`` or the left side of an ``=>`` stands around it. It goes inwards
        # (not a <= b is b < a; not (a or b) is (not a) and (not b)), so no formula ever holds one.
        stack: list[tuple[Form, int, list[Formula], bool]] = []
        form, position, done, negated = node, 1, list[Formula](), turned != (node[0] == "not")
        while True:
            while position < len(form):
                child = form[position]
                turned = negated != (form[0] == "=>" and position == 1)
                position += 1
                if _is_connective(child):
                    stack.append((form, position, done, negated))
                    form, position, done = child, 1, []
                    negated = turned != (child[0] == "not")
                elif isinstance(child, TextBlock) and child.kind == SMALL_CASES:
                    done += self._small_cases(child, form, turned)
                else:
                    done.append(self._leaf(child, form, turned))
            self._check_count(form, len(done))
            result: Formula = done[0]
            if form[0] != "not":
                is_and = (form[0] == "and") != negated
                result = And(tuple(done)) if is_and else Or(tuple(done))
            if not stack:
                return result
            form, position, done, negated = stack.pop()
            done.append(result)

    def asserted(self, block: TextBlock) -> tuple[Formula, ...]:
        """The conjuncts of a block of asserts."""
        return self._conjuncts(block)

    def _leaf(self, node: Form | str | TextBlock, parent: Form, negated: bool) -> Formula:
        if not isinstance(node, TextBlock):
            return self._comparison(node, parent, negated)
        if not negated:
            return And(self._conjuncts(node))
        self._blocks.read(node)
        return Or(tuple(self._of_spans(self._blocks.spans(node), True)))

    def _small_cases(self, block: TextBlock, parent: Form, negated: bool) -> list[Formula]:
        """The alternatives of an ``or`` that a run of small cases is."""
        found = None
        if not negated and self._elements is not None:
            found = small_cases(self._source.text, block, self._elements)
        if found is None or self._are_mixed(found):
            forms = read_forms(self._source, block)
            return [self.read(form, parent, negated) for form in forms]
        return [found]

    def _are_mixed(self, cases: ManyCases) -> bool:
        """Whether a comparison is not well typed: two types, or a number beyond its type (which
        the arrays' short decimals never are, see ``elements``)."""
        if self._type_of is None:
            return False
        sides = np.stack([cases.left_tensor, cases.right_tensor])
        words: list[list[tuple[str, Fraction | None]]] = [
            [(cases.tensors[t], None) for t in pair if t >= 0]
            for pair in np.unique(sides, axis=1).T.tolist()
        ]
        for k, value in cases.values.others.items():
            words.append([(cases.tensors[int(sides[:, k].max())], None), ("0", value)])
        return any(type_complaint(pair, self._type_of) for pair in words)

    def _conjuncts(self, block: TextBlock) -> tuple[Formula, ...]:
        found = self._blocks.read(block)
        known = None if self._elements is None else self._elements(found.prefix, found.indices)
        if known is None or not len(found.indices):
            return tuple(self._of_spans(self._blocks.spans(block), False))
        bounds = ManyBounds(known[0], known[1], found.is_upper, found.values)
        return bounds, *self._of_spans(found.rest, False)

    def _of_spans(self, spans: list[tuple[int, int]], negated: bool) -> list[Compare]:
        """Comparisons of a block, each read by itself."""
        result = []
        for start, stop in spans:
            form = Form(self._source.text[start + 1 : stop - 1].split(" "))
            form.offset = start
            result.append(self._comparison(form, form, negated))
        return result

    def _check_count(self, form: Form, count: int) -> None:
        wanted = {"not": 1, "=>": 2}.get(form.head())
        if count == 0 or count != (wanted or count):
            what = f"({form[0]}) has {count or 'no'} arguments"
            remedy = "write at least one inside it" if wanted is None else f"it takes {wanted}"
            raise self._source.error(form.offset, what, remedy)

    def _comparison(self, node: Form | str, parent: Form, negated: bool) -> Compare:
        if type(node) is Form and len(node) == 3:
            head, first, second = node
            known = _COMPARE.get(head) if type(head) is str else None
            if known is None and type(first) is str and (known := _COMPARE.get(first)) is not None:
                first = head  # infix: (Y_0 < Y_1)
            if known is not None:
                left = self._atoms.get(first) if type(first) is str else None
                right = self._atoms.get(second) if type(second) is str else None
                if left is None:
                    left = self._term(first, node)
                if right is None:
                    right = self._term(second, node)
                if self._type_of is not None:
                    self._check_types(node, self._type_of)
                op, exchanged = known
                if negated:
                    op = _NEGATED[op]
                    exchanged ^= op in ("<=", "<")
                return Compare(op, right, left) if exchanged else Compare(op, left, right)
        raise self._no_comparison(node, parent)

    def _check_types(self, node: Form, type_of: Callable[[str], str]) -> None:
        words: list[tuple[str, Fraction | None]] = []
        pending: list[Form | str | TextBlock] = [node]
        while pending:
            part = pending.pop()
            if isinstance(part, Form):
                pending.extend(reversed(part))
            elif isinstance(part, str) and part not in _COMPARE and part not in _ARITHMETIC:
                atom = self._atom(part, node)
                words.append((part, atom.value if isinstance(atom, Const) else None))
        what = type_complaint(words, type_of)
        if what:
            raise self._source.error(node.offset, what, "nothing is converted from type to type")

    def _no_comparison(self, node: Form | str, parent: Form) -> PropertyError | UnsupportedError:
        if isinstance(node, str):
            return self._source.error(
                parent.offset, f"{shown(node)!r} stands where a comparison belongs", _EXAMPLE
            )
        head = node.head()
        if head in _COMPARE:
            what = f"{shown(node)} has {len(node) - 1} sides"
            return self._source.error(node.offset, what, "a comparison takes exactly two")
        return self._unknown(node, "a comparison")

    def _unknown(self, form: Form, wanted: str) -> PropertyError | UnsupportedError:
        if form.head() in _KNOWN_BUT_UNSUPPORTED:
            place = f"{self._source.name}, line {self._source.line(form.offset)}"
            return UnsupportedError(
                f"{place}: {form.head()!r} is not supported; rewrite it with and, or, + - *."
            )
        return self._source.error(form.offset, f"{shown(form)} is not {wanted}", _EXAMPLE)

    def _atom(self, word: str, parent: Form) -> Term:
        found = self._atoms.get(word)
        if found is not None:
            return found
        try:
            value = parse_decimal(word)
            term: Term | None = Const(value) if value is not None else self._variable(word)
        except ValueError as problem:
            raise self._source.error(
                parent.offset, f"{shown(word)!r}: {problem}", "correct it"
            ) from None
        if term is None:
            raise self._source.error(
                parent.offset,
                f"{shown(word)!r} is neither a number nor a declared variable",
                "declare it first",
            )
        if len(self._atoms) < _MAX_CACHE:
            self._atoms[word] = term
        return term

    def _term(self, node: Form | str | TextBlock, parent: Form) -> Term:
        if isinstance(node, TextBlock):
            raise self._source.error(node.start, "a case stands where a term belongs", _EXAMPLE)
        if isinstance(node, str):
            return self._atom(node, parent)
        stack: list[tuple[Form, int, list[Term]]] = []
        form, position, done = node, 1, list[Term]()
        while True:
            if position == 1 and form.head() not in _ARITHMETIC:
                raise self._unknown(
                    form, "a number, a variable or a sum, difference or product of these"
                )
            while position < len(form):
                child = form[position]
                position += 1
                if not isinstance(child, Form):
                    done.append(self._term(child, form))
                else:
                    stack.append((form, position, done))
                    form, position, done = child, 1, []
                    break
            else:
                result = self._combine(form, done)
                if not stack:
                    return result
                form, position, done = stack.pop()
                done.append(result)

    def _combine(self, form: Form, args: list[Term]) -> Term:
        head = form.head()
        if not args:
            raise self._source.error(
                form.offset, f"({head}) has no arguments", "write at least one inside it"
            )
        if head == "+":
            return Sum(tuple(args))
        if head == "*":
            return Product(tuple(args))
        if head == "/":
            return self._quotient(form, args)
        if len(args) == 1:
            return _negated(args[0])
        return Sum((args[0], *(_negated(arg) for arg in args[1:])))

    def _quotient(self, form: Form, args: list[Term]) -> Term:
        divisors = [arg.value for arg in args[1:] if isinstance(arg, Const)]
        if (
            not self._division
            or len(args) < 2
            or len(divisors) != len(args) - 1
            or not all(divisors)
        ):
            where = f"{self._source.name}, line {self._source.line(form.offset)}"
            advice = (
                "multiply both sides instead" if self._division else "VNN-LIB 2.0 has no division"
            )
            raise UnsupportedError(f"{where}: cannot divide in {shown(form)}; {advice}.")
        factor = Fraction(1)
        for divisor in divisors:
            factor /= divisor
        first = args[0]
        return (
            Const(first.value * factor)
            if isinstance(first, Const)
            else Product((Const(factor), first))
        )


_CONNECTIVES = ("and", "or", "not", "=>")
_EXAMPLE = "write for example (<= X_0 0.5)"


def _is_connective(node: Form | str | TextBlock) -> TypeGuard[Form]:
    return type(node) is Form and len(node) > 0 and node[0] in _CONNECTIVES


def _negated(term: Term) -> Term:
    return Const(-term.value) if isinstance(term, Const) else Product((_MINUS_ONE, term))
