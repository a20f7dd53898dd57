"""Is the integer network of a certificate the one in the ONNX file?

Reads the file with rules of its own and encloses its tensors by the integers; imports nothing of
the prover.
"""
