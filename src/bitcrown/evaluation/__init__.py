"""Clean, attacked and verified accuracy of a network over a set of images.

Sees models, attacks, search and the integer engine; ``api`` and ``cli`` call it. It bounds and
attacks nothing by itself, it keeps account.
"""
