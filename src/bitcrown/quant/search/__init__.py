"""The decision of a query: attacks, bounds, reduced costs and branching until nothing is left open.

``decide`` is the entry. Imports all other parts but ``formats`` and ``smt``.
"""
