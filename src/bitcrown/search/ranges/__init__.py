"""Branch and bound over the ranges of operands: what sigmoid, tanh, exp, products and the like
need, whose relaxations no sign makes exact."""
