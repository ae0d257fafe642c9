"""Ways to count differing bits on x86-64 beside those that the kernels use, in turns (``popcounts.c``).

python benchmarks/popcounts.py
"""

from __future__ import annotations

import sys

from native import numbers

WAYS = {
    "bytes": "byte by byte, two lookups each (micro.AVX2)",
    "harley-seal": "Harley-Seal: eight steps by full adders, then bytes",
    "tables": "in the pixel's tables (table_product)",
    "words": "vpopcntq (micro.AVX512)",
    "words-added": "vpopcntq behind full adders of vpternlogq",
}


INPUTS = (128, 256, 512)
"""Channels of the layers, which are 3x3."""


def main() -> int:
    columns = [numbers("popcounts", f"-DINPUTS={inputs}", cpu="x86_64_v3") for inputs in INPUTS]
    if any(column is None for column in columns):
        print("popcounts.c needs a processor of x86-64 with AVX2", file=sys.stderr)
        return 2
    print("G binary MAC/s of one core; 3x3 layers of so many channels, four pixels against 64 outputs again and again")
    print("".join(f"{inputs:8}" for inputs in INPUTS))
    for name, what in WAYS.items():
        if all(column and name in column for column in columns):
            print("".join(f"{column[name]:8.0f}" for column in columns if column) + f"  {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
