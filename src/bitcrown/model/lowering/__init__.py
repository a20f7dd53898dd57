"""ONNX operators to engine nodes: one function per operator, grouped by family; ``LOWERINGS`` is
the table."""

from bitcrown.model.lowering import (
    activation,
    arithmetic,
    classical,
    comparison,
    contraction,
    contributed,
    dynamic_quantization,
    normalisation,
    pooling,
    quantization,
    recurrent,
    reduction,
    scatter,
    shape,
    trees,
    weights,
)
from bitcrown.model.lowering.builder import LOWERINGS, Builder

__all__ = [
    "LOWERINGS",
    "Builder",
    "activation",
    "arithmetic",
    "classical",
    "comparison",
    "contraction",
    "contributed",
    "dynamic_quantization",
    "normalisation",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "scatter",
    "shape",
    "trees",
    "weights",
]
