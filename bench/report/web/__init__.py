"""The page of a run for a browser: one self-contained HTML file, drawn from records alone."""
