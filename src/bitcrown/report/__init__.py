"""Results of runs as people read them: one page or one table of any number of result sets.

Decides nothing and runs nothing; what it shows comes from records.
"""
