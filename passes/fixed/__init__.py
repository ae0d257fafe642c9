"""Fixed-point and 8-bit arithmetic: layers become products of integers with rescaling."""
