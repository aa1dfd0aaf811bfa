"""Two runs held against each other: base and head measured side by side, judged, and what is said of it."""
