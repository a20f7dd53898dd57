"""Training of networks that can be verified, on the bounds of the verifier itself.

Sees model and bounds; what comes out is an ONNX file like any other.
"""
