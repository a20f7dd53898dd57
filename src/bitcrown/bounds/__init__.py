"""Sound bounds of a float network on a box, rounding errors included.

Intervals, zonotopes and linear bounds. Sees model only: it knows neither cases nor domains of a
search; who calls says which linear functions are to be bounded on which box.
"""
