"""From a ``Problem`` to a ``Verdict``: what is tried, in which order, and branch and bound.

Sees model, spec, bounds, attacks, the integer engine, and check, which replays what is found.
"""
