"""Proofs as data: the steps that a search records, and the canonical JSON that the checker reads.

Imports ``network``, ``query`` and the multipliers of ``bounds``; the checker shares no code with
it.
"""
