"""The integer engine: quantized networks, decided exactly, in integers from end to end.

It is a second engine beside the float one (model, bounds, search) and shares only the property
(spec) and the reading of ONNX files (model) with it. Its parts, each of which sees those to its
left and ``query`` (what is asked):

    network <- formats
    network <- bounds <- proof, attack <- search
    network <- smt

``formats`` turns a file into an ``IntegerNetwork``; ``search.decide`` decides a query about one,
and ``proof`` writes what it found for the checker; ``smt`` asks the same question of a bit-vector
solver.
"""
