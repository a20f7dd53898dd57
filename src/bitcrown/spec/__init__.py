"""Properties: VNN-LIB text to exact formulas, and formulas to cases that a search decides.

Sees the leaves only. Numbers are fractions; no float decides anything here.
"""
