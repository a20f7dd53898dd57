"""The independent second method: a query as a bit-vector formula, for Boolector and other solvers.

It shares the network's integers with the search and nothing else, so it imports ``network`` only.
"""
