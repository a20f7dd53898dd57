"""Tasks side by side, on this machine or on many: one interface, whoever computes.

A *task* is a function that a module has, with its argument; a *scheduler* takes tasks, gives their
results back as they come, and can end all that runs. ``local`` has two of them (in turn, several
worker processes), ``ray_tasks`` has the one of a Ray cluster. Everywhere a task runs in a *host*: a
process of its own, pinned to cores that no other task has, which ends with the process that started
it, however that went.
"""
