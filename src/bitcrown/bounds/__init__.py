"""Linear bounds of networks on boxes, and where they become claims: nothing here searches."""
