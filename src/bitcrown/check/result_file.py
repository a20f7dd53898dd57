"""Results files of any tool: read as leniently as the competition's scorers do, then replayed and
judged exactly.

VNN-LIB 1.0 witnesses are one s-expression ``((X_0 0.5) ... (Y_0 1.5))`` numbered from 0; those of
2.0 are blocks of a header ``NAME TYPE [SHAPE]`` and one value a line, in declaration order. The
file may lack its first line (the word), as the counterexample files of 2021-2026 do, and may be
gzipped. Output values must be there; the replay decides.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.truth import first_failure, is_finite, mentions, names, worst_atom
from bitcrown.errors import BitcrownError, PropertyError, said_by
from bitcrown.spec.decimals import short_text
from bitcrown.spec.network_field import parse_network
from bitcrown.spec.polynomial import element_name
from bitcrown.spec.query import Compare, Const, Product, Query, Sum, TensorDecl, Term
from bitcrown.spec.reader import read_query

_MAX_BYTES = 1 << 30
_WORDS = (
    "unsat",
    "sat",
    "timeout",
    "timed-out",
    "timed_out",
    "unknown",
    "error",
    "holds",
    "violated",
)
_HEADER = re.compile(r"(\S+)\s+(\S+)\s+\[([0-9,\s]*)\]")
_PAIR = re.compile(r"\s*\(\s*([XY])_([0-9]{1,9})\s+([^\s()]+)\s*")
_FLOATS = (
    "real",
    "float",
    "double",
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "f16",
    "f32",
    "f64",
    "bf16",
)
_TRUTH = {"true": 1.0, "false": 0.0}

_Values = dict[str, np.ndarray]


class _Malformed(BitcrownError):
    """What is wrong with the file, as the end of a sentence."""


@dataclass(frozen=True)
class CheckOutcome:
    """What became of a results file.

    ``word`` is its verdict (``sat``, ``unsat``, ``unknown``, ``timeout``, ``error``; ``""`` if
    there is none). ``accepted`` is true for a witness that holds on replay with zero tolerance, and
    for any other known word, which has nothing to replay. ``sentence`` says so, or which part fails
    and by how much.
    """

    word: str
    accepted: bool
    sentence: str


def check_result(result_path: Path, onnx_arg: str, vnnlib_path: Path) -> CheckOutcome:
    """Replay the witness of a results file on the original networks.

    ``onnx_arg`` is a path or the text of a list of ``('name', 'path')`` pairs. Raises
    ``PropertyError`` or ``ModelError`` if the property, a network or the results file cannot be
    read; whatever is wrong with the content of the results file is in the outcome.
    """
    text = _read_text(result_path)
    word, body = split_word(text)
    if word != "sat":
        sentence = f"the answer is {word}, so there is no witness to replay"
        return CheckOutcome(
            word,
            bool(word),
            sentence
            if word
            else f"malformed: {result_path} names no verdict; the results file comes first, then "
            "the network and the property",
        )
    query = read_query(vnnlib_path)
    replay = RuntimeReplay(query, network_files(onnx_arg, query))
    try:
        claimed = parse_witness(body, query)
        flat = np.concatenate([claimed[name] for name in names(query)[0]])
    except _Malformed as error:
        return CheckOutcome(word, False, f"malformed: {error}")
    return _judge(replay, query, flat, claimed)


def _judge(replay: RuntimeReplay, query: Query, flat: np.ndarray, claimed: _Values) -> CheckOutcome:
    """Replay the inputs ``flat [n]`` and look at every assertion."""
    fed, outputs = replay.run(flat)
    input_names, output_names = names(query)
    values = dict(zip(input_names + output_names, fed + outputs, strict=True))
    for name, array in values.items():
        if not is_finite({name: array}):
            return CheckOutcome("sat", False, f"rejected: {name} is not finite on replay")
    note = _claim_note(dict(zip(output_names, outputs, strict=True)), claimed)
    failed = first_failure(query, values)
    if failed is None:
        return CheckOutcome("sat", True, f"accepted: every assertion holds exactly on replay{note}")
    rounded = frozenset(input_names)
    if first_failure(query, values, rounded) is None:
        sentence = (
            "accepted: every assertion holds on replay, once input bounds are rounded to "
            "the network's type"
        )
        return CheckOutcome("sat", True, sentence + note)
    atom, miss = worst_atom(failed, values)
    where = (
        "the inputs lie outside the box"
        if mentions(failed) <= rounded
        else "the inputs satisfy their part, but"
    )
    if mentions(failed) <= rounded:
        return CheckOutcome(
            "sat",
            False,
            f"rejected: {where}: {_atom_text(atom, query)} fails {_miss_text(miss)}{note}",
        )
    outside = first_failure(query, values, rounded, only=rounded)
    if outside is not None:
        atom, miss = worst_atom(outside, values)
        where = "the inputs lie outside the box:"
    return CheckOutcome(
        "sat", False, f"rejected: {where} {_atom_text(atom, query)} fails {_miss_text(miss)}{note}"
    )


def _claim_note(outputs: _Values, claimed: _Values) -> str:
    """A remark if the outputs written in the file are not those of the replay (scorers up to 2025
    compare them)."""
    gap = max(
        float(np.abs(value.astype(np.float64) - claimed[name]).max())
        for name, value in outputs.items()
    )
    size = max(float(np.abs(value.astype(np.float64)).max()) for value in outputs.values())
    return (
        ""
        if gap <= 1e-3 * max(size, 1e-9)
        else f"; the outputs in the file differ from the replay by {gap:.3g}"
    )


def _miss_text(miss: object) -> str:
    return "because both sides are equal" if not miss else f"by {float(miss):.6g}"  # type: ignore[arg-type]


def split_word(text: str) -> tuple[str, str]:
    """(verdict, witness text): the word as scorers map it, by prefix; a file that starts with a
    witness is ``sat``."""
    stripped = text.strip()
    first, _, rest = stripped.partition("\n")
    if first.lstrip().startswith("(") or _HEADER.fullmatch(first.strip()):
        return "sat", stripped
    lowered = first.strip().lower()
    found = next((known for known in _WORDS if lowered.startswith(known)), "")
    if found in ("sat", "violated"):
        return "sat", (first.strip()[len(found) :] + "\n" + rest).strip()
    return {"holds": "unsat", "timed-out": "timeout", "timed_out": "timeout"}.get(found, found), ""


def parse_witness(body: str, query: Query) -> _Values:
    """Flat float64 arrays by tensor name, inputs and outputs; raises ``_Malformed``."""
    if not body.strip():
        raise _Malformed("the answer is sat, but the file has no witness")
    return _parse_1(body, query) if query.version[0] < 2 else _parse_2(body, query)


def _parse_1(body: str, query: Query) -> _Values:
    text = " ".join(body.split())
    if not (text.startswith("(") and text.endswith(")")):
        raise _Malformed("the witness is not enclosed in parentheses")
    parts = text[1:-1].split(")")
    if parts.pop().strip():
        raise _Malformed("the last pair is not closed")
    found: dict[str, list[float]] = {"X": [], "Y": []}
    for part in parts:
        match = _PAIR.fullmatch(part)
        if match is None:
            raise _Malformed(f"{part.strip()[:60]!r} is no pair (X_k number) or (Y_k number)")
        tensor, index = found[match[1]], int(match[2])
        if index != len(tensor):
            raise _Malformed(
                f"{match[1]}_{index} comes where {match[1]}_{len(tensor)} is due (number them "
                "from 0 up)"
            )
        tensor.append(_number(match[3], f"{match[1]}_{index}"))
    network = query.networks[0]
    for decl in network.inputs + network.outputs:
        due, given = math.prod(decl.shape), len(found[decl.name])
        if given != due:
            raise _Malformed(
                f"there are {given} values of {decl.name}, but the property declares {due}"
            )
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


def _parse_2(body: str, query: Query) -> _Values:
    lines = iter([line.strip() for line in body.splitlines() if line.strip()])
    values: _Values = {}
    for network in query.networks:
        for decl in network.inputs + network.hidden + network.outputs:
            _check_header(next(lines, None), decl)
            values[decl.name] = _block(lines, decl)
    extra = next(lines, None)
    if extra is not None:
        raise _Malformed(f"{extra[:60]!r} follows after the last tensor")
    return values


def _check_header(line: str | None, decl: TensorDecl) -> None:
    due = f"{decl.name} {decl.dtype} [{','.join(map(str, decl.shape))}]"
    if line is None:
        raise _Malformed(f"the file ends where tensor '{due}' is due")
    match = _HEADER.fullmatch(line)
    if match is None or match[1] != decl.name:
        raise _Malformed(f"{line[:60]!r} stands where tensor '{due}' is due")
    word = match[2].lower()
    if word != decl.dtype and not (word == "real" and decl.dtype in _FLOATS):
        raise _Malformed(
            f"{decl.name} has the type {match[2]}, but the property declares {decl.dtype}"
        )
    extents = [part.strip() for part in match[3].split(",")] if match[3].strip() else []
    if extents != [str(extent) for extent in decl.shape]:
        raise _Malformed(
            f"{decl.name} has the shape [{match[3]}], but the property declares {list(decl.shape)}"
        )


def _block(lines: Iterator[str], decl: TensorDecl) -> np.ndarray:
    due = math.prod(decl.shape)
    values = np.empty(due)
    for index in range(due):
        line = next(lines, None)
        if line is None or _HEADER.fullmatch(line):
            raise _Malformed(
                f"there are {index} values of {decl.name}, but the property declares {due}"
            )
        values[index] = _number(line, element_name(decl, index))
    return values


def _number(text: str, where: str) -> float:
    try:
        value = _TRUTH[text.lower()] if text.lower() in _TRUTH else float(text)
    except ValueError:
        raise _Malformed(f"{where} has the value {text[:40]!r}, which is no number") from None
    if not math.isfinite(value):
        raise _Malformed(f"{where} is {text[:40]}, which is not finite")
    return value


def network_files(onnx_arg: str, query: Query) -> dict[str, Path]:
    """Files by declared name. Raises ``PropertyError`` for a list that is none, or that lacks a
    declared network."""
    if not onnx_arg.lstrip().startswith("["):
        ((_, path),) = parse_network(onnx_arg)
        return {network.name: Path(path) for network in query.networks}
    files = {name: Path(path) for name, path in parse_network(onnx_arg)}
    if query.version[0] < 2 and len(files) == 1:
        return {query.networks[0].name: next(iter(files.values()))}
    for network in query.networks:
        base = network.name if network.name in files else network.equal_to
        if base not in files:
            given = ", ".join(files)
            raise PropertyError(
                f"the property declares network {network.name}, but only {given} has a file"
            )
        files[network.name] = files[base]
    return files


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            data = (
                gzip.GzipFile(fileobj=raw).read(_MAX_BYTES + 1)
                if is_gzip
                else raw.read(_MAX_BYTES + 1)
            )
    except (OSError, EOFError, zlib.error) as error:
        raise PropertyError(f"the results file {path} cannot be read: {said_by(error)}") from error
    if len(data) > _MAX_BYTES:
        raise PropertyError(f"the results file {path} holds more than {_MAX_BYTES} bytes")
    return data.decode("utf-8-sig", errors="replace")


def _atom_text(atom: Compare, query: Query) -> str:
    decls = {t.name: t for network in query.networks for t in network.given + network.computed}
    return f"{_term_text(atom.left, query, decls)} {atom.op} {_term_text(atom.right, query, decls)}"


def _term_text(term: Term, query: Query, decls: dict[str, TensorDecl]) -> str:
    if isinstance(term, Const):
        return short_text(term.value)
    if isinstance(term, Sum | Product):
        shown = [_term_text(part, query, decls) for part in term.args[:4]] + ["..."] * (
            len(term.args) > 4
        )
        return "(" + (" + " if isinstance(term, Sum) else " * ").join(shown) + ")"
    if query.version[0] < 2:
        return f"{term.tensor}_{term.index}"
    return element_name(decls[term.tensor], term.index)
