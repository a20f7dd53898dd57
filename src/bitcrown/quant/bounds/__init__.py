"""What holds for every input of a box: integer intervals, and Lagrangian bounds over staircases.

Floats propose multipliers (``relaxation``, ``slope_ascent``), integers prove (``staircase_dual``,
``exact``). Nothing is recorded here. Imports ``network`` and ``query``.
"""
