"""The bridge: what `bench` may measure of `ddposink`. Declarations here, torch only in ``*_run``."""
