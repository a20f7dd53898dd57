"""Branch and bound over the signs of ReLU operands, with propagation inside domains.

Sees bounds and the objective, nothing of the input search.
"""
