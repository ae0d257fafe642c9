"""A wire that loses, changes and adds bytes, in front of any port of the link."""

from __future__ import annotations

import random

from xnorc.runtimes.fpga.link import Port


class Noise:
    """``Port`` that damages what passes through ``port``: each byte with probability ``rate``, in both directions."""

    def __init__(self, port: Port, rate: float, seed: int) -> None:
        self.name, self.baud = port.name, port.baud
        self.port, self.rate, self.rng = port, rate, random.Random(seed)
        self.lost = self.changed = self.added = 0

    def damage(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            kind = self.rng.randrange(3) if self.rng.random() < self.rate else None
            if kind == 0:
                self.lost += 1
            elif kind == 1:
                self.changed += 1
                out.append(byte ^ self.rng.randrange(1, 256))
            else:
                out.append(byte)
                if kind == 2:
                    self.added += 1
                    out.append(self.rng.randrange(256))
        return bytes(out)

    def write(self, data: bytes) -> None:
        self.port.write(self.damage(data))

    def read(self, seconds: float) -> bytes:
        return self.damage(self.port.read(seconds))

    def close(self) -> None:
        self.port.close()
