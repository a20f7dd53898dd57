"""Bounds of inner layers in single precision, measured from a point of the box, rounding counted."""
