"""One row for every nonlinear operator: its range on an interval, and two lines around it.

Needs a ``Node`` and tensors, nothing else of the bounds; ``rows`` lists the modules.
"""
