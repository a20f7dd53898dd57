"""Smaller networks that have the same bounds: of a part of an image, or on a part of a box."""
