"""The table of an evaluation: accuracies with confidence intervals, as text and as one record.

An accuracy measured on ``n`` images is an estimate; beside it stands Wilson's 95 % interval for the share ``p`` among
all images of the distribution (Wilson, 1927): ``(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.evaluate.evaluation import BY_SEARCH, Evaluator, Outcome
from bitcrown.evaluate.journal import ATTACK, CLEAN
from bitcrown.evaluate.proving import ALPHA, CROWN, LEVELS, SEARCH
from bitcrown.harness.provenance import commit, dependency_versions, machine, version
from bitcrown.model.graph import Graph
from bitcrown.model.onnx_reader import model_bytes

Z95 = 1.959963984540054
FORMAT = 1
STANDING = "standing"
LAYER_OPS = ("Conv", "ConvTranspose", "Linear", "MatMulLeft")
TITLES = {CROWN: "CROWN verified", ALPHA: "alpha-CROWN verified", SEARCH: "branch and bound verified"}


@dataclass(frozen=True)
class Share:
    """``count`` of ``total`` images; ``low``/``high``: 95 % interval, all as shares of 1."""

    name: str
    count: int
    total: int

    @property
    def share(self) -> float:
        return self.count / self.total

    def interval(self) -> tuple[float, float]:
        n, p, z = self.total, self.share, Z95
        middle = p + z * z / (2 * n)
        reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return max(0.0, min(p, (middle - reach) / scale)), min(1.0, max(p, (middle + reach) / scale))


def shares(outcomes: Sequence[Outcome], levels: Sequence[str], has_attack: bool) -> list[Share]:
    """Columns of the table: a verified one counts what its level or a cheaper one proved.

    ``attack`` counts what the attack left standing; ``standing`` stands beside it where the search broke more.
    """
    total = len(outcomes)
    right = [one for one in outcomes if one.is_right]
    result = [Share(CLEAN, len(right), total)]
    for depth, level in enumerate(LEVELS[: len(levels)]):
        proved = sum(one.proved_by in LEVELS[: depth + 1] for one in right)
        result.append(Share(level, proved, total))
    if has_attack:
        result.append(Share(ATTACK, sum(one.broken_by in ("", BY_SEARCH) for one in right), total))
    if any(one.broken_by == BY_SEARCH for one in right):
        result.append(Share(STANDING, sum(not one.broken_by for one in right), total))
    return result


def parameter_count(path: Path) -> int:
    """Floating-point numbers stored in an ONNX file, batch normalisation included."""
    import onnx

    model = onnx.load_from_string(model_bytes(path))
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors += [attribute.t for attribute in node.attribute if attribute.name == "value" and attribute.t.dims]
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return sum(int(np.prod(list(tensor.dims))) for tensor in tensors if tensor.data_type in floats)


def layer_count(graph: Graph) -> int:
    """Most layers with weights on any path from input to output, so that shortcuts do not count."""
    depth: dict[str, int] = {}
    for node in graph.nodes.values():
        before = max([depth[name] for name in node.inputs], default=0)
        depth[node.name] = before + (node.op in LAYER_OPS)
    return max(depth[name] for name in graph.outputs)


def record_of(evaluator: Evaluator, outcomes: Sequence[Outcome], wall: float) -> dict[str, Any]:
    """Everything about a finished evaluation, ready for JSON."""
    plan = evaluator.plan
    parameters = parameter_count(plan.network)
    rows = shares(outcomes, plan.levels, plan.has_attack)
    statuses = [one.status for one in outcomes]
    seconds = [one.seconds for one in outcomes if one.is_right]
    return {
        "format": FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": version(),
        "commit": commit(),
        "dependencies": dependency_versions(),
        "settings": plan.settings.as_dict(),
        "machine": machine(),
        **plan.identity(),
        "data": evaluator.images.name,
        "images": len(outcomes),
        "parameters": parameters,
        "megabytes": 4e-6 * parameters,
        "layers": layer_count(evaluator.model.network.graph),
        "bounds": list(plan.levels),
        "accuracy": {row.name: {"count": row.count, "share": row.share, "interval95": row.interval()} for row in rows},
        "status": {name: statuses.count(name) for name in sorted(set(statuses))},
        "broken_by": dict(Counter(one.broken_by for one in outcomes if one.broken_by)),
        "proved_by": dict(Counter(one.proved_by for one in outcomes if one.proved_by)),
        "contradictions": [one.image for one in outcomes if one.is_contradiction],
        "bound_seconds": {"mean": float(np.mean(seconds)), "max": max(seconds)} if seconds else {},
        "wall_s": round(wall, 2),
        "per_image": [{**asdict(one), "status": one.status} for one in outcomes],
    }


def table(record: dict[str, Any]) -> str:
    """One network as a Markdown table, accuracies in percent with their 95 % intervals."""
    attack = record["attack"]
    titles = {CLEAN: "Clean acc.", STANDING: "not broken by any", **TITLES}
    if attack:
        titles[ATTACK] = f"PGD-{attack['steps']}x{attack['restarts']} acc."
    columns = [("Model", Path(record["network"]).stem)]
    columns += [("Model size", f"{record['megabytes']:.1f} MB"), ("Layers", str(record["layers"]))]
    for name, row in record["accuracy"].items():
        low, high = row["interval95"]
        columns.append((titles[name], f"{100 * row['share']:.2f} % [{100 * low:.1f}, {100 * high:.1f}]"))
    widths = [max(len(title), len(text)) for title, text in columns]
    lines = [" | ".join(title.ljust(width) for (title, _), width in zip(columns, widths, strict=True))]
    lines.append(" | ".join("-" * width for width in widths))
    lines.append(" | ".join(text.ljust(width) for (_, text), width in zip(columns, widths, strict=True)))
    counts = ", ".join(f"{count} {name}" for name, count in record["status"].items())
    return "\n".join(f"| {line} |" for line in lines) + (
        f"\n\n{record['images']} images of {record['data']}, eps {record['eps']}: {counts}\n"
    )
