"""From the suite file to the plan: what may be said, the grid, its cells and the passes that answer them."""
