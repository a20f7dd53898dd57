"""Attacks on a ``Problem``: probes that need no gradient, and projected gradient descent.

Sees model, spec and check, nothing of bounds or search.
"""
