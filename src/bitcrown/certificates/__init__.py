"""Writers of certificates for float networks: choices that ``check`` then proves by itself; nothing
here is a claim."""
