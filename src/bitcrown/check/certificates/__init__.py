"""Checkers of proofs, one package for each kind of network, and what they share.

They read network, property and certificate themselves and follow the proof step by step.
"""
