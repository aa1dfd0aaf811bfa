"""What a run leaves behind: records and their digests, the folder they lie in, the machine they are of."""
