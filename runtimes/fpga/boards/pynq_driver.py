"""Runs an xnorc accelerator on a PYNQ-Z2. Copy this file, xnorc.bit and xnorc.hwh to the board.

    from driver import Accelerator
    results = Accelerator("xnorc.bit").run(images)

``images``: ``uint8 [n, ceil(bits / 8)]``, bit i of an image in bit i % 8 of byte i // 8. ``results``: the same for results.
"""

import time

import numpy as np
from pynq import Overlay, allocate

MAGIC, BATCH, DONE, CYCLES, RESET = 0x524F4E58, 0x10, 0x14, 0x18, 0x1C
WORD_BYTES = 8


class Accelerator:
    """The accelerator of a bitstream: ``image_bytes`` in, ``result_bytes`` out, ``design`` is the hash of what it computes."""

    def __init__(self, bitstream="xnorc.bit", seconds=10.0):
        self.overlay = Overlay(bitstream)
        self.core, self.dma, self.seconds = self.overlay.core, self.overlay.dma, seconds
        if self.core.read(0x00) != MAGIC:
            raise RuntimeError(f"{bitstream} holds no xnorc accelerator")
        self.image_bytes, self.result_bytes = (self.core.read(0x08) + 7) // 8, (self.core.read(0x0C) + 7) // 8
        self.design = b"".join(self.core.read(0x20 + place).to_bytes(4, "little") for place in range(0, 16, 4)).hex()
        self.core.write(RESET, 1)

    def run(self, images):
        """Results of all images, in one transfer of the DMA each way."""
        images = np.asarray(images, dtype=np.uint8)
        if images.ndim != 2 or images.shape[1] != self.image_bytes:
            raise ValueError(f"images must be [n, {self.image_bytes}], not {list(images.shape)}")
        if len(images) == 0:
            return np.empty((0, self.result_bytes), np.uint8)
        source = allocate((len(images), -(-self.image_bytes // WORD_BYTES) * WORD_BYTES), dtype=np.uint8)
        target = allocate((len(images), -(-self.result_bytes // WORD_BYTES) * WORD_BYTES), dtype=np.uint8)
        try:
            source[:] = 0
            source[:, : self.image_bytes] = images
            self.core.write(BATCH, len(images))
            self.dma.recvchannel.transfer(target)
            self.dma.sendchannel.transfer(source)
            end = time.monotonic() + self.seconds
            while not self.dma.recvchannel.idle:
                if time.monotonic() > end:
                    self.core.write(RESET, 1)
                    raise TimeoutError(f"{self.core.read(DONE)} of {len(images)} results after {self.seconds:g} s")
            return np.array(target[:, : self.result_bytes])
        finally:
            source.freebuffer()
            target.freebuffer()

    def cycles(self):
        """Clock cycles of the last batch, from the first word into the accelerator to the last one out."""
        return self.core.read(CYCLES)
