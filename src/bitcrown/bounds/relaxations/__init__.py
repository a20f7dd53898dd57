"""Nonlinear operators between linear functions: a row for each operator (``registry``)."""
