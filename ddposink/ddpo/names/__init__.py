"""TRL's names for what it dropped, over either engine; scripts import them from `ddposink.ddpo.trl_names`."""
