"""Readers: quantized ONNX (QDQ, QOperator, QONNX, integer operators) and fixed-point ``.h5`` files.

Each operator has one rule (``rule_table``), written in the file's own arithmetic; what was read is
compared with onnxruntime at every load (``agreement``). Imports ``network`` and ``model``; nothing
behind a reader has to know a scale, a zero point or a rounding mode.
"""
