"""Smaller networks that stand for a whole one.

What a tile of a layer sees; what is undecided on a box. Made from bounds and a network; the bound
engine runs in them unchanged.
"""
