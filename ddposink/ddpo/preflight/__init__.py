"""What must hold before a training is worth starting, shown in seconds on the very pipeline."""
