"""Instances as competitions run them: time limits, processes, result files, records.

The parent process imports nothing heavy; only the worker calls the library.
"""
