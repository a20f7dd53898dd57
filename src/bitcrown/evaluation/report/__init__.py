"""What an evaluation found, as a table, a record or a page.

Computes no verdict; what it shows comes from records.
"""
