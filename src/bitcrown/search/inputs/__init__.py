"""Branch and bound over boxes of inputs, for networks in which few inputs vary.

Sees bounds and the objective, nothing of the neuron search.
"""
