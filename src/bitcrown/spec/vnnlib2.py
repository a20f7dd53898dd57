"""VNN-LIB 2.0: declared networks and shaped tensors, relations between networks, ``==`` and
``!=``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

import numpy as np

from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.spec.blocks import DECLARATIONS, TextBlock
from bitcrown.spec.element_types import ELEMENT_TYPES
from bitcrown.spec.formula import FormulaReader
from bitcrown.spec.query import And, Formula, NetworkDecl, Query, TensorDecl, Var
from bitcrown.spec.sexpr import Form, Source, shown

_MAX_ELEMENTS = 1 << 26
_MAX_RANK = 32
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_VERSION = re.compile(r"<?\s*([0-9]{1,4})\.([0-9]{1,4})\s*>?")
_INDICES = re.compile(r"\s*[0-9]{1,9}\s*(?:,\s*[0-9]{1,9}\s*)*")
_WIDE_TYPES = ("real", "float32", "float64", "bfloat16")
"""Types that hold every number of 18 digits (with an exponent, see ``_decimals``, too)."""
_NO_ARITHMETIC = frozenset({"string", "complex64", "complex128", "c64", "c128"})
_ORDER = {
    "equal-to": 0,
    "isomorphic-to": 0,
    "declare-input": 1,
    "declare-hidden": 2,
    "declare-output": 3,
}


def parse_vnnlib2(source: Source, forms: Iterable[Form | TextBlock]) -> Query:
    """Read the forms of a VNN-LIB 2.0 file, the version form included.

    Raises:
        PropertyError: another major version, no network or assertion, a name that is declared twice
            or not at all, a bad shape or index, a comparison that is not well typed, an
            equivalence with a network that does not fit.
        UnsupportedError: an element type without arithmetic, a tensor too large, division and the
            like.
    """
    version: tuple[int, int] | None = None
    declarations = _Declarations(source)
    reader = FormulaReader(
        source,
        declarations.variable,
        division=False,
        type_of=declarations.type_of,
        elements=declarations.elements,
    )
    formulas: list[Formula] = []
    for form in forms:
        if isinstance(form, TextBlock):
            if form.kind == DECLARATIONS:
                what, remedy = "declare-const has no place here", "use declare-network"
                raise source.error(form.start, what, remedy)
            formulas += reader.asserted(form)
            continue
        head = form.head()
        if head == "assert":
            if len(form) != 2:
                raise source.error(
                    form.offset, f"assert has {len(form) - 1} formulas", "write exactly one"
                )
            formulas.append(reader.read(form[1], form))
        elif head == "declare-network" and not formulas:
            declarations.network(form)
        elif head == "vnnlib-version" and version is None and not declarations.networks:
            version = _version(source, form)
        else:
            what = f"{shown(form)} has no place here"
            raise source.error(
                form.offset, what, "use one vnnlib-version, then declare-network, then assert"
            )
    if version is None:
        raise PropertyError(
            f"{source.name}: the version is missing; add (vnnlib-version <2.0>) as the first form."
        )
    if not declarations.networks:
        raise PropertyError(f"{source.name}: no network is declared; add (declare-network f ...).")
    if not formulas:
        raise PropertyError(
            f"{source.name}: there is no assert, so nothing is asked; add the property."
        )
    return Query(version, tuple(declarations.networks.values()), And(tuple(formulas)))


def _version(source: Source, form: Form) -> tuple[int, int]:
    match = _VERSION.fullmatch(" ".join(shown(word) for word in form[1:]))
    if match is None:
        raise source.error(
            form.offset, f"{shown(form)} names no version", "write (vnnlib-version <2.0>)"
        )
    if match[1] != "2":
        raise source.error(
            form.offset,
            f"version {match[1]}.{match[2]} is not 2.x",
            "convert the file to version 2.0",
        )
    return 2, int(match[2])


@dataclass
class _Declarations:
    """The networks and tensors declared so far."""

    source: Source
    networks: dict[str, NetworkDecl] = field(default_factory=dict)
    tensors: dict[str, TensorDecl] = field(default_factory=dict)

    def variable(self, word: str) -> Var | None:
        """``X[0,3]`` as a ``Var``; ``ValueError`` for a bad index, ``None`` for an undeclared
        name."""
        name, bracket, rest = word.partition("[")
        tensor = self.tensors.get(name.rstrip())
        if tensor is None:
            return None
        indices: list[int] = []
        if bracket:
            if not _INDICES.fullmatch(rest[:-1]):
                raise ValueError("an index is a list of whole numbers such as [0,3]")
            indices = [int(part) for part in rest[:-1].split(",")]
        shape = tensor.shape
        given = len(indices)
        # Generators write Y[0] for an output of shape [1,1]: trailing indices that can only be 0
        # may be left out.
        if given > len(shape) or any(extent != 1 for extent in shape[given:]):
            raise ValueError(
                f"{tensor.name} of shape {list(shape)} needs {len(shape)} indices, not {given}"
            )
        flat = 0
        for index, extent in zip(indices, shape, strict=False):
            if index >= extent:
                raise ValueError(
                    f"index {index} is out of range for {tensor.name} of shape {list(shape)}"
                )
            flat = flat * extent + index
        return Var(tensor.name, flat)

    def type_of(self, word: str) -> str:
        """The declared element type of a variable that ``variable`` knows."""
        return self.tensors[word.partition("[")[0].rstrip()].dtype

    def elements(self, prefix: str, indices: np.ndarray) -> tuple[str, np.ndarray] | None:
        """``X[`` and indices ``[k, rank]``: see ``FormulaReader``."""
        tensor = self.tensors.get(prefix.removesuffix("["))
        if tensor is None or ELEMENT_TYPES[tensor.dtype].name not in _WIDE_TYPES:
            return None
        if len(tensor.shape) != indices.shape[1] or (indices >= np.array(tensor.shape)).any():
            return None
        return tensor.name, np.ravel_multi_index(tuple(indices.T), tensor.shape)

    def network(self, form: Form) -> None:
        """Add one ``declare-network``; ``PropertyError`` if it is not well formed."""
        name = self._new_name(form, form[1] if len(form) > 1 else "")
        inputs: list[TensorDecl] = []
        hidden: list[TensorDecl] = []
        outputs: list[TensorDecl] = []
        relation: dict[str, str] = {}
        stage = 0
        for part in form[2:]:
            head = part.head() if isinstance(part, Form) else ""
            if not isinstance(part, Form) or head not in _ORDER:
                what = f"{shown(part)} has no place in declare-network"
                raise self.source.error(
                    form.offset, what, "use declare-input, declare-hidden and declare-output"
                )
            if _ORDER[head] < stage:
                what = f"{head} comes too late in network {name}"
                raise self.source.error(
                    part.offset, what, "the order is equivalence, inputs, hidden, outputs"
                )
            stage = _ORDER[head]
            if stage == 0:
                if relation:
                    raise self.source.error(
                        part.offset, f"network {name} has two equivalences", "keep one"
                    )
                relation[head] = self._base(part)
            else:
                (inputs, hidden, outputs)[stage - 1].append(
                    self._tensor(part, head == "declare-hidden")
                )
        if not inputs or not outputs:
            what = f"network {name} has no {'outputs' if inputs else 'inputs'}"
            raise self.source.error(
                form.offset, what, "declare every input and output of the model"
            )
        decl = NetworkDecl(
            name,
            tuple(inputs),
            tuple(outputs),
            tuple(hidden),
            equal_to=relation.get("equal-to", ""),
            isomorphic_to=relation.get("isomorphic-to", ""),
        )
        self._check_equivalence(form, decl)
        self.networks[name] = decl

    def _new_name(self, form: Form, name: Form | str | TextBlock) -> str:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self.source.error(
                form.offset, f"{shown(name)!r} is no name", "use letters, digits and _"
            )
        if name in self.networks or name in self.tensors:
            raise self.source.error(
                form.offset, f"{name} is declared twice", "names are unique over the whole file"
            )
        return name

    def _base(self, form: Form) -> str:
        name = form[1] if len(form) == 2 else ""
        base = self.networks.get(name) if isinstance(name, str) else None
        if base is None:
            what = f"{shown(form)} names no network declared before"
            raise self.source.error(form.offset, what, "declare that network first")
        if base.equal_to or base.isomorphic_to:
            what = (
                f"{base.name} is itself {'equal' if base.equal_to else 'isomorphic'} to "
                "another network"
            )
            raise self.source.error(form.offset, what, "refer to the first network of the chain")
        return base.name

    def _tensor(self, form: Form, is_hidden: bool) -> TensorDecl:
        usage = (
            f"({form[0]} NAME TYPE "
            f"[1,5]{' ' + chr(34) + 'onnx name' + chr(34) if is_hidden else ''})"
        )
        is_initialized = form.head() == "declare-input" and form[-1] == "initialized"
        if (
            len(form) - is_initialized != 3 + is_hidden
            or not isinstance(form[2], str)
            or "[" not in form[2]
        ):
            raise self.source.error(
                form.offset, f"{shown(form)} declares no tensor", f"write {usage}"
            )
        name = self._new_name(form, form[1])
        word, _, extents = form[2].partition("[")
        dtype = word.strip().lower()
        if dtype in _NO_ARITHMETIC:
            raise UnsupportedError(
                f"{self.source.name}: {name} has the type {dtype}, on which no bound exists."
            )
        if dtype not in ELEMENT_TYPES:
            raise self.source.error(
                form.offset, f"{shown(word.strip())!r} is no element type", "use real or float32"
            )
        onnx_name = form[3] if is_hidden else ""
        if not isinstance(onnx_name, str) or (is_hidden and not onnx_name.startswith('"')):
            raise self.source.error(
                form.offset, f"hidden tensor {name} has no ONNX name", f"write {usage}"
            )
        shape = self._shape(form, extents[:-1])
        decl = TensorDecl(name, dtype, shape, onnx_name.strip('"'), is_initialized)
        self.tensors[name] = decl
        return decl

    def _shape(self, form: Form, text: str) -> tuple[int, ...]:
        if not text.strip():
            return ()
        if not _INDICES.fullmatch(text):
            raise self.source.error(
                form.offset, f"[{shown(text)}] is no shape", "write whole numbers such as [1,5]"
            )
        shape = tuple(int(part) for part in text.split(","))
        if len(shape) > _MAX_RANK:
            raise self.source.error(
                form.offset, f"a shape has {len(shape)} extents", f"use at most {_MAX_RANK}"
            )
        if 0 in shape:
            raise self.source.error(
                form.offset, f"the shape {list(shape)} has no elements", "use extents from 1 on"
            )
        if prod(shape) > _MAX_ELEMENTS:
            raise UnsupportedError(
                f"{self.source.name}: the shape {list(shape)} has more than {_MAX_ELEMENTS} "
                "elements; use a smaller one."
            )
        return shape

    def _check_equivalence(self, form: Form, decl: NetworkDecl) -> None:
        base = self.networks.get(decl.equal_to or decl.isomorphic_to)
        if base is None:
            return

        # Isomorphic networks may differ in element type, equal ones may not.
        def signature(tensors: tuple[TensorDecl, ...]) -> list[tuple[object, ...]]:
            return [
                (t.shape, t.is_initialized, ELEMENT_TYPES[t.dtype].name if decl.equal_to else "")
                for t in tensors
            ]

        if signature(decl.inputs) != signature(base.inputs) or signature(decl.outputs) != signature(
            base.outputs
        ):
            what = (
                f"{decl.name} differs from {base.name} in its "
                f"shapes{' or types' if decl.equal_to else ''}"
            )
            raise self.source.error(form.offset, what, "declare the same tensors in both")
        if decl.equal_to:
            known = {t.onnx_name: signature((t,)) for t in base.hidden}
            for tensor in decl.hidden:
                if signature((tensor,)) != known.get(tensor.onnx_name, signature((tensor,))):
                    what = f"{tensor.name} differs from the tensor of that name in {base.name}"
                    raise self.source.error(form.offset, what, "declare it alike in both")
