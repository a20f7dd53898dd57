"""Published image networks that come as TensorFlow checkpoints, and readers of those.

Sees the leaves only: torch modules that attacks and evaluations take as they are.
"""
