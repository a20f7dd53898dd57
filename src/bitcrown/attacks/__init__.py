"""Counterexamples: to a property, and to the labels of images.

``property`` attacks what a VNN-LIB file asks, ``images`` are the suites whose numbers are
published. Sees model, spec and check. An attack proposes; ``check`` decides what counts.
"""
