"""Checks proofs about float networks in numpy: every bound again, with its rounding error.

Imports nothing of the prover and nothing of the checkers of integers.
"""
