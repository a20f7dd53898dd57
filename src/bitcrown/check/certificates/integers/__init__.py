"""Checks proofs about integer networks in whole numbers that never wrap.

Imports nothing of the prover. ``quantized`` sees to it that the network is that of the file.
"""
