"""The command line: arguments to library calls to exit codes.

The only room that prints. It sees whatever a command needs, and decides nothing by itself.
"""
