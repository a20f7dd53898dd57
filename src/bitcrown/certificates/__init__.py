"""Writers of certificates for float networks: choices that ``check`` then proves by itself.

Nothing here is a claim. Sees the checker, whose own steps it searches with, and what a search
recorded.
"""
