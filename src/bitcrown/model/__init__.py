"""Networks: an ONNX file becomes a ``Graph`` of few operators, and that a ``Network`` to run.

Sees the leaves only. It knows neither properties nor bounds.
"""
