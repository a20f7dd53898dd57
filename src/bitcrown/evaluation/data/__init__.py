"""Labelled images from the files that people have.

Sees errors and ``archives`` only.
"""
