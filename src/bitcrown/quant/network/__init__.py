"""Integer networks: their nodes, exact evaluation, ranges, and the maps between integers and
tensors.

Nothing here knows a file format, a bound or a search; this part imports no other part of the
engine.
"""
