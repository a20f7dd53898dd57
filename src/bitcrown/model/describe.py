"""A network in words: what ``bitcrown inspect`` shows."""

from __future__ import annotations

from collections import Counter

from bitcrown.model.graph import Graph


def describe(graph: Graph) -> str:
    """Inputs, outputs, totals, and one line per tensor: name, operator, shape, weights, what it
    reads."""
    lines = []
    for title, names in (("input", graph.inputs), ("output", graph.outputs)):
        lines += [f"{title} {name} {list(graph.nodes[name].shape)}" for name in names]
    operations = Counter(node.op for node in graph.nodes.values() if node.op != "Input")
    weights = sum(array.size for node in graph.nodes.values() for array in node.params.values())
    kinds = ", ".join(f"{count} {op}" for op, count in operations.items())
    lines.append(f"{len(graph.nodes)} tensors, {weights} weights; {kinds}")
    rows = [
        (
            node.name,
            node.op,
            "x".join(map(str, node.shape)) or "scalar",
            " ".join(f"{key}{list(array.shape)}" for key, array in node.params.items()),
            ", ".join(node.inputs),
        )
        for node in graph.nodes.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
