"""Imports every module that registers relaxation rows. A new operator is one line here and one in
the laws."""

from bitcrown.bounds.relaxations import (
    clip,
    convex,
    difference,
    dynamic_quantize,
    elu,
    larger,
    log_share,
    log_sum_exp,
    matrix_product,
    perturb,
    positive,
    product,
    relu,
    s_shaped,
    slope,
    steps,
    trigonometric,
    truncation,
)

__all__ = [
    "clip",
    "convex",
    "difference",
    "dynamic_quantize",
    "elu",
    "larger",
    "log_share",
    "log_sum_exp",
    "matrix_product",
    "perturb",
    "positive",
    "product",
    "relu",
    "s_shaped",
    "slope",
    "steps",
    "trigonometric",
    "truncation",
]
