"""Random ONNX graphs that are computed while they are built.

Every node is run by onnxruntime, alone, on a few sample points as soon as it is added. So a
generator need not know a rule of shape inference: it looks at the values that are there. What
onnxruntime has no kernel for (float64 ``Erf``), or what gives no finite number on any sample,
raises ``Unfit`` and the network goes on without that node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]
OPSETS = (9, 13, 17, 20, 22, 24)
LARGEST = 160
"""Entries of the largest tensor: an instance must cost a fraction of a second."""
DENSE = 24
"""Entries after which a dense layer makes the tensor small again."""


class Unfit(Exception):
    """The operator does not go here: another one is tried."""


def session(model: Any) -> Any:
    """onnxruntime on one thread without optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def ir_version(opset: int) -> int:
    return 8 if opset < 19 else 10


class Net:
    """A graph with one input ``x``. ``values[name]`` holds the tensor at each sample; constants
    hold one array."""

    def __init__(
        self, rng: np.random.Generator, samples: Sequence[Array], opset: int, dtype: Any
    ) -> None:
        self.rng, self.opset, self.dtype = rng, opset, np.dtype(dtype)
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self.values: dict[str, list[Array]] = {"x": list(samples)}
        self.used: list[str] = []

    # -- what is there -----------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        return self.constants[name].shape if name in self.constants else self.values[name][0].shape

    def size(self, name: str) -> int:
        return int(np.prod(self.shape(name)))

    def kind(self, name: str) -> np.dtype[Any]:
        return self.constants[name].dtype if name in self.constants else self.values[name][0].dtype

    def largest(self, name: str) -> float:
        return max(
            float(np.abs(value.astype(np.float64)).max(initial=0.0)) for value in self.values[name]
        )

    # -- what is added -----------------------------------------------------------------------------

    def constant(self, value: Any, dtype: Any = None) -> str:
        name = f"c{len(self.constants)}"
        with np.errstate(over="ignore"):
            self.constants[name] = np.array(value, dtype=self.dtype if dtype is None else dtype)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(list(values), np.int64)

    def weights(self, *shape: int, scale: float = 1.0) -> Array:
        """Numbers of which some are zero, some are round and some have all their digits."""
        value = self.rng.normal(size=shape) * min(scale, 1e300)
        if self.rng.random() < 0.5 and 1e-6 < scale < 1e6:
            value = np.round(value * 16) / 16
        return value * (self.rng.random(shape) < 0.9)

    def add(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> str:
        """The name of the (first) output; the others follow as ``name.1``, ``name.2``; ``domain``
        may be given."""
        base = f"t{len(self.nodes)}"
        names = [base, *(f"{base}.{k}" for k in range(1, outputs))]
        node = helper.make_node(op, list(inputs), names, name=f"n{len(self.nodes)}", **attrs)
        found = self._run(node, [name for name in inputs if name], names)
        if any(value.size > LARGEST or not value.size for value in found[0]):
            raise Unfit(f"{op} makes {found[0][0].size} entries")
        self.nodes.append(node)
        self.values.update({name: [values[k] for values in found] for k, name in enumerate(names)})
        self.used.append(op)
        return base

    def _run(self, node: Any, inputs: Sequence[str], outputs: Sequence[str]) -> list[list[Array]]:
        moving = [name for name in dict.fromkeys(inputs) if name not in self.constants]
        entries = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(self.kind(name)), list(self.shape(name))
            )
            for name in moving
        ]
        fixed = [
            numpy_helper.from_array(self.constants[name], name)
            for name in dict.fromkeys(inputs)
            if name in self.constants
        ]
        graph = helper.make_graph(
            [node], "n", entries, [onnx.ValueInfoProto(name=name) for name in outputs], fixed
        )
        model = helper.make_model(
            graph, opset_imports=self._opsets([node]), ir_version=ir_version(self.opset)
        )
        found: list[list[Array]] = []
        try:
            runtime = session(model)
            for k in range(len(self.values["x"]) if moving else 1):
                found.append(
                    [
                        np.asarray(v)
                        for v in runtime.run(None, {n: self.values[n][k] for n in moving})
                    ]
                )
        except Exception as error:
            raise Unfit(f"{node.op_type}: {str(error).splitlines()[0]}") from error
        if not moving:
            found *= len(self.values["x"])
        if not any(np.isfinite(v.astype(np.float64)).all() for values in found for v in values[:1]):
            raise Unfit(f"{node.op_type} is nowhere finite")
        return found

    def model(self, output: str) -> Any:
        """The graph as a model with the output ``y``; nodes that nothing needs are left out."""
        needed, kept = {output}, []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                needed.update(node.input)
                kept.append(node)
        nodes = [*reversed(kept), helper.make_node("Identity", [output], ["y"], name="last")]
        dtype = helper.np_dtype_to_tensor_dtype(self.kind("x"))
        entry = helper.make_tensor_value_info("x", dtype, list(self.shape("x")))
        end = helper.make_tensor_value_info(
            "y", helper.np_dtype_to_tensor_dtype(self.kind(output)), list(self.shape(output))
        )
        fixed = [
            numpy_helper.from_array(v, name) for name, v in self.constants.items() if name in needed
        ]
        graph = helper.make_graph(nodes, "net", [entry], [end], fixed)
        return helper.make_model(
            graph, opset_imports=self._opsets(nodes), ir_version=ir_version(self.opset)
        )

    def _opsets(self, nodes: Sequence[Any]) -> list[Any]:
        others = sorted({node.domain for node in nodes if node.domain})
        return [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(domain, 1) for domain in others),
        ]

    # -- shapes that operators want ----------------------------------------------------------------

    def reshaped(self, x: str, *shape: int) -> str:
        return x if self.shape(x) == shape else self.add("Reshape", x, self.ints(*shape))

    def flat(self, x: str) -> str:
        """``[1, n]``."""
        return self.reshaped(x, 1, self.size(x))

    def dense(self, x: str, outputs: int, scale: float = 1.0) -> str:
        """A dense layer to ``[1, outputs]``, as ``Gemm`` or as ``MatMul`` and ``Add``."""
        x = self.flat(x)
        weight = self.weights(self.size(x), outputs, scale=scale / np.sqrt(self.size(x)))
        bias = self.weights(outputs, scale=0.3 * scale * min(max(self.largest(x), 1e-300), 1e300))
        if self.rng.random() < 0.5:
            return self.add("Gemm", x, self.constant(weight.T), self.constant(bias), transB=1)
        return self.add("Add", self.add("MatMul", x, self.constant(weight)), self.constant(bias))

    def image(self, x: str, rank: int = 0) -> str:
        """``[1, C, H]``, ``[1, C, H, W]`` or ``[1, C, D, H, W]`` with few entries."""
        rank = rank or int(self.rng.choice([1, 2, 2, 2, 3]))
        if len(self.shape(x)) == rank + 2 and self.rng.random() < 0.7:
            return x
        shape = (1, int(self.rng.integers(1, 4)), *(int(e) for e in self.rng.integers(2, 5, rank)))
        if np.prod(shape) > 48:
            shape = (1, 2, *([2] * (rank - 1)), 3)
        return self.reshaped(self.dense(x, int(np.prod(shape))), *shape)

    def positive(self, x: str, least: float = 0.1) -> str:
        """Something that is positive by what it is made of: what logarithms, roots and divisors
        need."""
        makers: list[Callable[[], str]] = [
            lambda: self.add("Abs", x),
            lambda: self.add("Mul", x, x),
            lambda: self.add("Relu", x),
            lambda: self.add("Sigmoid", x),
            lambda: self.add("Exp", x),
            lambda: self.add("Softplus", x),
        ]
        value = makers[int(self.rng.integers(len(makers)))]()
        room = least * float(self.rng.choice([1.0, 10.0, 0.01]))
        return self.add("Add", value, self.constant([room])) if self.rng.random() < 0.95 else value

    def tamed(self, x: str, limit: float = 8.0) -> str:
        """``x`` scaled so that the samples stay below ``limit``: for functions that overflow."""
        if self.largest(x) <= limit or self.rng.random() < 0.05:
            return x
        return self.add("Mul", x, self.constant([limit / 2 / self.largest(x)]))

    def axes(
        self, values: Sequence[int], since: int
    ) -> tuple[tuple[str, ...], dict[str, list[int]]]:
        """Axes as an input from opset ``since`` on, as an attribute before."""
        if self.opset >= since:
            return (self.ints(*values),), {}
        return (), {"axes": list(values)}

    def some_axes(self, x: str) -> list[int]:
        rank = len(self.shape(x))
        chosen = self.rng.permutation(rank)[: int(self.rng.integers(1, rank + 1))]
        return sorted(int(a) - (rank if self.rng.random() < 0.3 else 0) for a in chosen)


Generator = Callable[[Net, str], str]
"""Adds an instance of one operator that reads ``x`` (and whatever else it needs); returns its
output."""
