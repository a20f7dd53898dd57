"""All operator rows; importing this package registers them (and imports torch)."""

from bitcrown.model.ops import convolution, elementwise, linear, nonlinear, reduction, shaping

__all__ = ["convolution", "elementwise", "linear", "nonlinear", "reduction", "shaping"]
