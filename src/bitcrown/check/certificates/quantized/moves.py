"""The checker's rules for operators that only move elements.

onnxruntime itself moves the numbers of the elements.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.quantized.chain import (
    INPUT,
    ChainTensor,
    NumpyArray,
)
from bitcrown.check.certificates.quantized.reading import (
    FileReading,
    Operator,
    quantized_rule,
)
from bitcrown.check.certificates.quantized.runtime import computed

MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


@quantized_rule(*MOVES)
def move(reading: FileReading, node: Operator) -> None:
    name = node.inputs[0]
    others: list[NumpyArray | None] = [
        reading.constants.get(other) if other else None for other in node.inputs[1:]
    ]
    need(
        all(v is not None or not i for v, i in zip(others, node.inputs[1:], strict=True)),
        f"{node} moves by the input",
    )
    if name in reading.constants:
        (reading.constants[node.outputs[0]],) = computed(node, [reading.constants[name], *others])
        if name in reading.grids:
            ints, scales = (
                computed(node, [np.ascontiguousarray(g), *others])[0] for g in reading.grids[name]
            )
            reading.grids[node.outputs[0]] = ints, scales
        return
    tensors = reading.given(name)
    if (
        tensors[0].size and int(tensors[0].nodes[0]) != INPUT
    ):  # a node that is known in this order is so moved, too
        tensors = reading.views(name)
    (index,) = computed(node, [np.arange(tensors[0].size).reshape(tensors[0].shape), *others])
    reading.bind(node, [tensor.moved(index) for tensor in tensors])


@quantized_rule("Concat")
def concat(reading: FileReading, node: Operator) -> None:
    parts = [reading.views(name) for name in node.inputs]
    found = []
    for first in parts[0]:
        kinds = [(step.name, len(step.params)) for step in first.chain]
        same = [
            next((v for v in p if [(s.name, len(s.params)) for s in v.chain] == kinds), None)
            for p in parts
        ]
        chosen = [v for v in same if v is not None]
        if len(chosen) == len(parts) and all(
            v.dtype == first.dtype and v.keys is None for v in chosen
        ):
            found.append(_joined(chosen, int(node.attrs["axis"])))
    reading.bind(node, found)


def _joined(parts: list[ChainTensor], axis: int) -> ChainTensor:
    start = np.cumsum([0, *(part.size for part in parts)])
    index = np.concatenate(
        [s + np.arange(p.size).reshape(p.shape) for s, p in zip(start, parts, strict=False)],
        axis=axis,
    )
    chain = [
        replace(
            steps[0],
            whole=all(step.whole for step in steps),
            keeps=all(step.keeps for step in steps),
            params=tuple(
                np.concatenate(
                    [
                        np.broadcast_to(p, (part.size,))
                        for p, part in zip(params, parts, strict=True)
                    ]
                )
                for params in zip(*(step.params for step in steps), strict=True)
            ),
        )
        for steps in zip(*(part.chain for part in parts), strict=True)
    ]
    nodes, elements = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("nodes", "elements")
    )
    whole = ChainTensor(nodes, elements, (len(nodes),), parts[0].dtype, tuple(chain))
    return whole.moved(index)
