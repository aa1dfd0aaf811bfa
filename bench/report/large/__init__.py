"""A run of more cells than anybody reads: all of them counted and in ``full.csv``, some of them drawn.

Up to `MOST_CELLS` a report holds every cell. Above that, nothing is ever held whole: one pass over the file
counts (``survey``), a stated rule picks whole settings (``choice``), these are loaded as if they were the run
(``load``), and a second pass writes the table of all cells (``every``).
"""

MOST_CELLS = 10_000  # of which a report draws all
CHOSEN_CELLS = 1_000  # drawn of a larger run
