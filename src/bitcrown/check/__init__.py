"""The second opinion: witnesses replayed, results judged, certificates checked.

Sees spec and onnxruntime, and no code of those who found the answer: neither torch nor the readers,
bounds or networks of the prover.
"""
