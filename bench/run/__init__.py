"""One run, from the request to the last record: passes, their children, and what is shown meanwhile."""
