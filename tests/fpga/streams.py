"""Driving a unit with streams in Amaranth's simulator, with random gaps and refusals."""

import random

import numpy as np
from amaranth.sim import Simulator


def stream_through(unit, words, count, *, gaps=0.0, refusals=0.0, seed=0, most_cycles=100_000):
    """The first ``count`` words that ``unit`` gives for ``words``, and the cycle of each."""
    chance = random.Random(seed)
    got, cycles = [], []

    async def feed(context):
        for word in words:
            while chance.random() < gaps:
                await context.tick()
            context.set(unit.input.payload, word)
            context.set(unit.input.valid, 1)
            ready = 0
            while not ready:
                _, _, ready = await context.tick().sample(unit.input.ready)
            context.set(unit.input.valid, 0)

    async def drain(context):
        for cycle in range(most_cycles):
            context.set(unit.output.ready, chance.random() >= refusals)
            _, _, valid, ready, word = await context.tick().sample(
                unit.output.valid, unit.output.ready, unit.output.payload
            )
            if valid and ready:
                got.append(word)
                cycles.append(cycle)
                if len(got) == count:
                    return
        raise AssertionError(f"{len(got)} of {count} words after {most_cycles} cycles")

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_process(feed)
    simulator.add_testbench(drain)
    simulator.run()
    return got, cycles


def words_of(elements, width, bits=1):
    """Elements [...] of a frame after the other as words of ``width`` bits, each frame padded."""
    spread = (np.asarray(elements)[..., None] >> np.arange(bits)) & 1
    flat = spread.reshape(len(elements), -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % width))).reshape(-1, width)
    return [sum(int(bit) << i for i, bit in enumerate(row)) for row in flat]


def elements_of(words, width, frames, bits=1):
    """What ``words_of`` undoes: ``[frames, elements]``."""
    raw = np.array([[(word >> i) & 1 for i in range(width)] for word in words], np.int64).reshape(frames, -1)
    raw = raw[:, : raw.shape[1] // bits * bits]
    return raw.reshape(frames, -1, bits) @ (1 << np.arange(bits))
