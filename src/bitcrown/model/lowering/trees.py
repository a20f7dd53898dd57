"""Ensembles of trees: every question of a node is a step, every leaf a ReLU of a sum of steps.

With the truths ``p_d`` in {0, 1} of the ``k`` questions on the way to a leaf, answered yes on ``T``
and no on ``F``,

    [the leaf is reached] = max(sum_{d in T} p_d + sum_{d in F} (1 - p_d) - (k - 1), 0),

and scores are a linear function of these numbers: one leaf of each tree is reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.classical import transformed_scores
from bitcrown.model.lowering.comparison import winners
from bitcrown.model.lowering.undefined import decides_on

_QUESTIONS = {"LEQ": (1, False), "GT": (1, True), "LT": (-1, True), "GTE": (-1, False)}
"""``s``, and whether ``[s (x - t) > 0]`` means yes."""
_LARGEST = 1 << 20
"""Entries of the matrix from questions to leaves of trees that are read as one."""


class _Row(NamedTuple):
    column: int
    yes: int
    no: int
    mode: str
    limit: float


@dataclass
class _Group:
    """Trees that are read as one. ``places``: the questions ``[s (x_c - t) > 0]`` as ``(c, t, s)``;
    ``ways``: for each leaf, by tree and number, the places asked before it, with the answers."""

    places: dict[tuple[int, float, int], int] = field(default_factory=dict)
    ways: dict[tuple[int, int], list[tuple[int, bool]]] = field(default_factory=dict)


def _groups(node: OnnxNode) -> Iterator[_Group]:
    keys = ("featureids", "truenodeids", "falsenodeids", "modes")
    columns = [node.attrs.get(f"nodes_{key}", []) for key in keys]
    columns[-1] = [bytes(mode).decode("utf-8", "replace") for mode in columns[-1]]
    limits = np.asarray(node.attrs.get("nodes_values", []), dtype=np.float32).tolist()
    names = (node.attrs.get(f"nodes_{key}", []) for key in ("treeids", "nodeids"))
    trees: dict[int, dict[int, _Row]] = {}
    for tree, place, *row in zip(*names, *columns, limits, strict=True):
        if place in trees.setdefault(tree, {}):
            raise ModelError(f"node {node.name!r}: tree {tree} has node {place} twice")
        trees[tree][place] = _Row(*row)
    group = _Group()
    for tree, rows in trees.items():
        _walk(node, tree, rows, group)
        if len(group.ways) * len(group.places) > _LARGEST:
            yield group
            group = _Group()
    if group.ways:
        yield group


def _walk(node: OnnxNode, tree: int, rows: Mapping[int, _Row], group: _Group) -> None:
    children = {end for row in rows.values() if row.mode != "LEAF" for end in (row.yes, row.no)}
    waiting: list[tuple[int, list[tuple[int, bool]]]] = [(p, []) for p in rows if p not in children]
    seen: set[int] = set()
    is_tree = len(waiting) == 1
    while waiting and is_tree:
        place, way = waiting.pop()
        is_tree = place in rows and place not in seen
        if not is_tree:
            break
        seen.add(place)
        row = rows[place]
        if row.mode == "LEAF":
            group.ways[tree, place] = way
            continue
        sign, means_yes = _QUESTIONS.get(row.mode.removeprefix("BRANCH_"), (0, False))
        if not sign:
            raise UnsupportedError(f"node {node.name!r}: a tree asks {row.mode}")
        asked = group.places.setdefault((row.column, row.limit, sign), len(group.places))
        waiting += [(row.yes, [*way, (asked, means_yes)]), (row.no, [*way, (asked, not means_yes)])]
    if not is_tree or len(seen) != len(rows):
        raise ModelError(f"node {node.name!r}: tree {tree} is no tree")


def _reached(b: Builder, x: str, group: _Group) -> str:
    """``[.., leaves]``: 1 for the leaf of each tree that is reached, 0 for the others."""
    if not group.places:
        raise UnsupportedError(f"node {b.source!r}: trees that ask nothing")
    columns, limits, signs = (np.array(part) for part in zip(*group.places, strict=True))
    asked = b.gathered(x, len(b.shape(x)) - 1, columns.astype(np.int64))
    truths = b.relu(b.emit("Sign", (b.scaled(asked, signs.astype(float), -signs * limits),)))
    weight = np.zeros((len(group.ways), len(group.places)))
    bias = np.ones(len(group.ways))
    for leaf, way in enumerate(group.ways.values()):
        # (A way that asks one thing twice has its answer twice in the sum, or cannot be gone.)
        for place, answer in way:
            weight[leaf, place] += 1.0 if answer else -1.0
            bias[leaf] -= 1.0 if answer else 0.0
    return b.relu(b.emit("Linear", (truths,), params={"weight": weight, "bias": bias}))


def _scores(b: Builder, node: OnnxNode, kind: str, count: int, needed: int) -> str:
    """``[.., count]``: the sums of what the leaves that are reached say. Of at least ``needed``
    numbers each leaf must say something: onnxruntime goes other ways where none did."""
    if "nodes_values" not in node.attrs or f"{kind}_weights" not in node.attrs:
        raise UnsupportedError(f"node {node.name!r}: trees whose limits are not float32")
    x = b.node_of(node.inputs[0])
    decides_on(b, x)
    if b.dtypes.get(node.inputs[0], "float32") != "float32":
        raise UnsupportedError(f"node {node.name!r}: trees of numbers that are not float32")
    x = b.reshaped(x, (1, *b.shape(x))) if len(b.shape(x)) == 1 else x
    said: dict[tuple[int, int], np.ndarray] = {}
    names = (node.attrs[f"{kind}_{key}"] for key in ("treeids", "nodeids", "ids"))
    weights = np.asarray(node.attrs[f"{kind}_weights"], dtype=np.float32).tolist()
    for tree, place, number, weight in zip(*names, weights, strict=True):
        if not 0 <= number < count:
            raise ModelError(f"node {node.name!r}: a leaf about number {number} of {count}")
        row = said.setdefault((tree, place), np.full(count, np.nan))
        row[number] = np.nan_to_num(row[number]) + weight
    total, trees = "", set()
    for group in _groups(node):
        trees |= {tree for tree, _ in group.ways}
        matrix = np.stack([said.get(leaf, np.full(count, np.nan)) for leaf in group.ways], axis=1)
        if (np.isfinite(matrix).sum(axis=0) < needed).any():
            raise UnsupportedError(f"node {node.name!r}: trees with a leaf that says too little")
        matrix = np.nan_to_num(matrix)
        part = b.emit("Linear", (_reached(b, x, group),), params={"weight": matrix})
        total = b.binary("Add", total, part) if total else part
    if not total:
        raise ModelError(f"node {node.name!r}: an ensemble without trees")
    kind = node.attrs.get("aggregate_function", "SUM")
    if kind not in ("SUM", "AVERAGE"):
        raise UnsupportedError(f"node {node.name!r}: trees of which the {kind} counts")
    return b.scaled(total, 1.0 / len(trees), None) if kind == "AVERAGE" else total


def _base(node: OnnxNode) -> np.ndarray:
    return np.asarray(node.attrs.get("base_values", []), dtype=np.float32).astype(np.float64)


@lowers("ai.onnx.ml.TreeEnsembleRegressor")
def tree_regressor(b: Builder, node: OnnxNode) -> None:
    count, base = int(node.attrs.get("n_targets", 1)), _base(node)
    if node.attrs.get("post_transform", "NONE") != "NONE" or base.size not in (0, count):
        raise UnsupportedError(f"node {node.name!r}: trees with a transform behind them")
    found = _scores(b, node, "target", count, count if base.any() else 1)
    b.bind(node, b.scaled(found, None, base) if base.size else found)


@lowers("ai.onnx.ml.TreeEnsembleClassifier")
def tree_classifier(b: Builder, node: OnnxNode) -> None:
    """A label, and scores of all classes. Two classes may have one sum ``s``: with weights that are
    all positive it is the share of the second one, otherwise more than 0 means the second. Of two
    sums the second alone says the label."""
    labels = np.asarray(node.attrs.get("classlabels_int64s", []), dtype=np.float64)
    count = len(labels) or len(node.attrs.get("classlabels_strings", []))
    base, asked = _base(node), set(node.attrs.get("class_ids", []))
    is_one_sum = count == 2 and asked == {0}
    fitting = (0, 1) if is_one_sum else (0, count) if count > 2 else (0,)
    if count < 2 or asked == {1} or base.size not in fitting:
        raise UnsupportedError(
            f"node {node.name!r}: trees with {base.size} base values for scores of {len(asked)} of "
            f"{count} classes"
        )
    scores = _scores(b, node, "class", count, 2 if count == 2 and not is_one_sum else 1)
    scores = b.sliced(scores, 1, 0, 1) if is_one_sum else scores
    scores = b.scaled(scores, None, base) if base.size else scores
    is_share = min(node.attrs["class_weights"], default=0.0) >= 0.0
    if node.outputs[0] and b.readers.get(node.outputs[0], 0):
        if not len(labels):
            raise UnsupportedError(f"node {node.name!r}: labels that are words")
        if count == 2 and not is_one_sum:
            # (onnxruntime has no labels here: 1 where the second score is above 0, and 0.)
            label = _label(b, b.sliced(scores, 1, 1, 2), np.array([0.0, 1.0]), 0.0)
        elif count > 2 and not base.size and not _have_all_scores(node, count):
            raise UnsupportedError(
                f"node {node.name!r}: trees with labels, and leaves that say too little"
            )
        else:
            label = _label(b, scores, labels, 0.5 if is_share else 0.0)
        b.bind(node, label, 0)
    if len(node.outputs) > 1 and node.outputs[1]:
        b.bind(node, _shown(b, node, scores, is_share), 1)


def _have_all_scores(node: OnnxNode, count: int) -> bool:
    """Whether of each class all leaves of some tree say something: onnxruntime passes over classes
    of which no leaf did, which have 0 in the scores."""
    names = zip(node.attrs["nodes_treeids"], node.attrs["nodes_nodeids"], strict=True)
    modes = node.attrs["nodes_modes"]
    leaves = {way for way, mode in zip(names, modes, strict=True) if bytes(mode) == b"LEAF"}
    said = [node.attrs[f"class_{key}"] for key in ("treeids", "nodeids", "ids")]
    for number in range(count):
        speaking = {(tree, place) for tree, place, of in zip(*said, strict=True) if of == number}
        if {tree for tree, _ in leaves} <= {tree for tree, _ in leaves - speaking}:
            return False
    return True


def _label(b: Builder, scores: str, labels: np.ndarray, limit: float) -> str:
    if b.shape(scores)[-1] > 1:
        best = b.scaled(winners(b, scores, 1, last=False), labels, None)
        return b.summed(best, (1,), False)
    is_second = b.relu(b.emit("Sign", (b.scaled(scores, None, -limit),)))
    value = b.scaled(is_second, labels[1] - labels[0], labels[0])
    return b.reshaped(value, (math.prod(b.shape(value)),))


def _shown(b: Builder, node: OnnxNode, scores: str, is_share: bool) -> str:
    kind: Any = node.attrs.get("post_transform", "NONE")
    if b.shape(scores)[-1] == 1:  # the only sum, of two classes
        if kind == "LOGISTIC":
            scores = b.along(scores, 1, np.array([[-1.0], [1.0]]))
        elif kind == "NONE":
            both = b.along(scores, 1, np.array([[-1.0], [1.0]]))
            return b.scaled(both, None, np.array([1.0, 0.0])) if is_share else both
        else:
            raise UnsupportedError(f"node {node.name!r}: trees with transform {kind!r}")
    return transformed_scores(b, node, scores)
