"""Numbers of a few bits: quantizers recognised, layers between them become operations on bit planes."""
