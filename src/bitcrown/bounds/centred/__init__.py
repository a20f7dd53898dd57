"""Bounds of inner layers in single precision, about a point of the box, rounding counted."""
