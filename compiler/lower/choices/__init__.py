"""Room: what tuning found, by target (see ``xnorc.lower.shipped``)."""
