"""The link's hardware in Amaranth's simulator: widths, frames, faults, resynchronisation, the UART."""

from __future__ import annotations

import random
from math import ceil
from typing import Any

import pytest

pytest.importorskip("amaranth")

from amaranth import Module, Signal
from amaranth.lib.cdc import AsyncFFSynchronizer
from amaranth.sim import Simulator

from tests.fpga.accelerators import Invert, Sum, inverted
from xnorc.errors import InputError
from xnorc.runtimes.fpga.link import BytesToWords, Framed, Uart, WordsToBytes
from xnorc.runtimes.fpga.link.protocol import HELLO, STATUS, Command, Fault, Frame, FrameReader
from xnorc.runtimes.fpga.link.uart import divisor
from xnorc.runtimes.fpga.link.widths import Relay


def pump(
    design: Any,
    into: Any,
    words: list[int],
    out: Any,
    cycles: int,
    seed: float = 0,
    calm: float = 0.7,
    pauses: Any = (),
    deaf: int = 0,
    core_period: float = 0.37e-6,
) -> list[int]:
    """Words through a design, both ends ready and valid at random.

    Before word i in ``pauses`` that many quiet cycles; nobody listens for the first ``deaf`` cycles. ``core_period``: seconds
    of a cycle of the accelerator's clock, where it has one; those of the link take 1e-6.
    """
    rng, got = random.Random(seed), []
    waits = dict(pauses)

    async def bench(ctx: Any) -> None:
        place, valid = 0, False
        for cycle in range(cycles):
            if not valid and place < len(words):
                waits[place] = waits.get(place, 0) - 1
                valid = waits[place] < 0 and rng.random() < calm
            ctx.set(into.valid, valid)
            ctx.set(into.payload, words[place] if valid else 0)
            ctx.set(out.ready, cycle >= deaf and rng.random() < calm)
            taken = valid and ctx.get(into.ready)
            if ctx.get(out.valid) and ctx.get(out.ready):
                got.append(ctx.get(out.payload))
            await ctx.tick()
            if taken:
                place, valid = place + 1, False

    m, clocked = Module(), Signal()
    m.submodules.design = design
    if isinstance(design, Framed):
        m.domains += design.domain
    two = isinstance(design, Framed) and design.two_clocks
    m.d.sync += clocked.eq(~clocked)  # a design may be wires alone
    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    if two:
        simulator.add_clock(core_period, phase=0.1e-6, domain="core")
    simulator.add_testbench(bench)
    simulator.run()
    return got


def cut(value: int, bits: int, width: int) -> list[int]:
    """``bits`` bits as words, lowest first, the last one padded with zeros."""
    return [value >> start & (1 << width) - 1 for start in range(0, bits, width)]


@pytest.mark.parametrize("bits, width", [(24, 8), (7, 3), (20, 12), (100, 64), (13, 1), (9, 4), (16, 40), (3, 24)])
def test_widths_keep_every_bit_and_pad_with_zeros(bits: int, width: int) -> None:
    rng = random.Random(bits)
    items = [rng.getrandbits(bits) for _ in range(4)]
    octets = [byte for item in items for byte in cut(item, bits, 8)]
    words = [word for item in items for word in cut(item, bits, width)]
    wide, narrow = BytesToWords(bits, width), WordsToBytes(bits, width)
    assert pump(wide, wide.input, octets, wide.output, 900, seed=1) == words
    assert pump(narrow, narrow.input, words, narrow.output, 900, seed=2) == octets


def test_a_relay_keeps_every_word_and_can_pass_one_a_cycle() -> None:
    words = [random.Random(5).randrange(256) for _ in range(60)]
    for seed in range(3):
        relay = Relay(8)
        assert pump(relay, relay.input, words, relay.output, 300, seed=seed) == words
    relay = Relay(8)
    assert pump(relay, relay.input, words, relay.output, 61, calm=1.0) == words


def talk(design: Framed, data: bytes, cycles: int, **options: Any) -> list[Frame]:
    """The frames that a board answers to ``data``."""
    reader = FrameReader()
    answer = pump(design, design.rx, list(data), design.tx, cycles, **options)
    found = [*reader.feed(bytes(answer)), *reader.give_up()]
    assert reader.skipped == 0, "a board sends nothing but frames"
    return found


def images(count: int, bits: int, seed: int = 0) -> list[bytes]:
    rng, size = random.Random(seed), ceil(bits / 8)
    return [(rng.getrandbits(bits)).to_bytes(size, "little") for _ in range(count)]


def test_hello_run_status_in_the_order_of_the_requests() -> None:
    design = Framed(Invert(24, 8), design=bytes(range(16)), clock_hz=1e6, gap_cycles=1000, payload_bytes=32)
    sent = images(9, 24)
    data = Frame(7, Command.HELLO).encode() + Frame(8, Command.RUN, b"".join(sent)).encode()
    data += Frame(9, Command.RUN, sent[0]).encode() + Frame(10, Command.STATUS).encode()
    hello, run, one, status = talk(design, data, 700)
    assert (hello.sequence, hello.command) == (7, Command.HELLO | 0x80)
    assert HELLO.unpack(hello.payload) == (b"XNOR", 1, 0, 30, 64, bytes(range(16)), 24, 24, 1000000)
    assert run == Frame(8, Command.RUN | 0x80, b"".join(inverted(image, 24) for image in sent))
    assert one == Frame(9, Command.RUN | 0x80, inverted(sent[0], 24))
    cycles, good, bad = STATUS.unpack(status.payload)
    assert (good, bad) == (4, 0) and 3 <= cycles < 40


def later(monkeypatch: pytest.MonkeyPatch, cycles: int) -> None:
    """Let all that is reset in the accelerator's clock see it so much later, as ``netlist.spread`` does."""
    synchronizer = AsyncFFSynchronizer.elaborate

    def elaborate(self: Any, platform: Any) -> Any:
        if self._o_domain != "core":
            return synchronizer(self, platform)
        seen, self.o = self.o, Signal(init=1)
        m, last = synchronizer(self, platform), self.o
        for number in range(cycles):
            given, last = last, Signal(init=1, reset_less=True, name=f"late{number}")
            m.d.core += last.eq(given)
        m.d.comb += seen.eq(last)
        return m

    monkeypatch.setattr(AsyncFFSynchronizer, "elaborate", elaborate)


@pytest.mark.parametrize("period, late", [(0.37e-6, 0), (0.99e-6, 0), (2.3e-6, 0), (0.37e-6, 3), (2.3e-6, 2)])
def test_an_accelerator_with_a_clock_of_its_own(period: float, late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, late)
    design = Framed(Sum(5), clock_hz=1 / period, link_hz=1e6, gap_cycles=1000, payload_bytes=40)
    sent = images(21, 40)
    data = b"".join(
        Frame(number, Command.RUN, b"".join(sent[3 * number : 3 * number + 3])).encode() for number in range(7)
    )
    between = Frame(8, Command.RESET).encode() + Frame(9, Command.STATUS).encode()
    again = Frame(10, Command.RUN, sent[0]).encode() + Frame(11, Command.STATUS).encode()
    # The host waits for its replies before it resets, and for that of RESET before it goes on.
    pauses = {len(data): 900, len(data) + 10: 100, len(data) + len(between): 100}
    replies = talk(design, data + between + again, 3600, pauses=pauses, core_period=period)
    assert [reply.sequence for reply in replies] == [*range(7), 8, 9, 10, 11]
    for number, reply in enumerate(replies[:7]):
        assert reply.payload == b"".join(
            sum(image).to_bytes(2, "little") for image in sent[3 * number : 3 * number + 3]
        )
    none, _, bad = STATUS.unpack(replies[8].payload)
    cycles, _, _ = STATUS.unpack(replies[10].payload)
    assert none == bad == 0 and replies[9].payload == sum(sent[0]).to_bytes(2, "little")
    # Five bytes at the speed of the link, in cycles of the accelerator's clock, and the sum behind them.
    assert 2 <= cycles <= 12 / (period * 1e6) + 4


@pytest.mark.parametrize("count", [1, 5])
def test_results_of_another_size_than_the_images(count: int) -> None:
    design, sent = Framed(Sum(5), gap_cycles=1000, payload_bytes=30), images(count, 40)
    (reply,) = talk(design, Frame(0, Command.RUN, b"".join(sent)).encode(), 300)
    assert reply.payload == b"".join(sum(image).to_bytes(2, "little") for image in sent)


RUN3 = Frame(3, Command.RUN, bytes(range(6))).encode()
BROKEN = {
    "a wrong byte in the payload": (RUN3[:8] + b"\xff" + RUN3[9:], Fault.CRC),
    "a wrong CRC": (RUN3[:-1] + bytes([RUN3[-1] ^ 1]), Fault.CRC),
    "a payload larger than the buffer": (Frame(3, Command.RUN, bytes(33)).encode(), Fault.TOO_LONG),
    "an unknown command": (Frame(3, 9, b"abc").encode(), Fault.UNKNOWN),
    "command 0": (Frame(3, 0).encode(), Fault.UNKNOWN),
    "half an image": (Frame(3, Command.RUN, bytes(4)).encode(), Fault.SIZE),
    "no image": (Frame(3, Command.RUN).encode(), Fault.SIZE),
    "a payload that has no place": (Frame(3, Command.HELLO, b"abc").encode(), Fault.SIZE),
    "half a frame": (RUN3[:9], Fault.TIMEOUT),
    "a frame without its last byte": (RUN3[:-1], Fault.TIMEOUT),
    "half a header": (RUN3[:4], None),
    "a wrong header": (RUN3[:3] + b"\x55" + RUN3[4:], None),
    "garbage": (bytes(range(0x70, 0x90)), None),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_frame_is_named_and_the_next_one_answered(what: str) -> None:
    data, fault = BROKEN[what]
    design = Framed(Invert(24, 8), gap_cycles=200, payload_bytes=32)
    good = Frame(4, Command.RUN, b"\x01\x02\x03")
    replies = talk(design, data + good.encode(), 900, pauses={len(data): 300})
    expected = [] if fault is None else [Frame(3, 0xFF, bytes([fault]))]
    assert replies == [*expected, Frame(4, Command.RUN | 0x80, b"\xfe\xfd\xfc")]


def test_a_lost_byte_in_a_stream_of_frames_costs_at_most_the_next_one() -> None:
    """Without a pause the receiver takes the next frame's start for the rest, and hunts until the one after it."""
    rng = random.Random(3)
    for _ in range(2):
        stream = [bytearray(Frame(n, Command.RUN, bytes(rng.sample(range(0x7E), 12))).encode()) for n in range(5)]
        del stream[1][rng.randrange(len(stream[1]))]
        design = Framed(Invert(24, 8), gap_cycles=400, payload_bytes=32)
        replies = talk(design, b"".join(stream), 1200, seed=rng.random())
        answered = {reply.sequence for reply in replies if reply.command == Command.RUN | 0x80}
        assert {0, 3, 4} <= answered and 1 not in answered


def test_more_than_the_buffer_holds_is_refused_and_nothing_is_lost_of_what_was_taken() -> None:
    design, sent = Framed(Invert(24, 8), gap_cycles=2000, payload_bytes=32), images(10, 24)
    data = b"".join(Frame(n, Command.RUN, b"".join(sent)).encode() for n in range(6))
    replies = talk(design, data, 1500, calm=1.0)  # the output is as fast as the input: all taken
    assert [reply.command for reply in replies] == [Command.RUN | 0x80] * 6
    design = Framed(Invert(24, 8), gap_cycles=2000, payload_bytes=32)
    replies = talk(design, data, 2000, calm=1.0, deaf=600)
    kinds = {reply.sequence: reply.command for reply in replies}
    assert kinds == {0: 0x82, 1: 0x82, 2: 0xFF, 3: 0xFF, 4: 0xFF}, "more replies than the board can note are not given"
    assert {reply.payload for reply in replies if reply.command == 0xFF} == {bytes([Fault.BUSY])}


def test_reset_throws_away_what_is_under_way() -> None:
    design = Framed(Invert(24, 8), gap_cycles=2000, payload_bytes=32)
    data = (
        Frame(1, Command.RUN, bytes(30)).encode() + Frame(2, Command.RESET).encode() + Frame(3, Command.STATUS).encode()
    )
    reader = FrameReader()
    answer = pump(design, design.rx, list(data), design.tx, 600, calm=0.9, pauses={40: 3})
    replies = [*reader.feed(bytes(answer)), *reader.give_up()]
    assert replies[-2:] == [Frame(2, Command.RESET | 0x80), Frame(3, Command.STATUS | 0x80, STATUS.pack(0, 1, 0))]


def test_images_too_large_for_a_frame_are_refused() -> None:
    with pytest.raises(InputError, match="an image of this accelerator has 65536 bytes"):
        Framed(Invert(65536 * 8, 8))


@pytest.mark.parametrize("cycles", [4, 9])
def test_uart_loop(cycles: int) -> None:
    uart, m = Uart(cycles), Module()
    m.submodules.uart = uart
    m.d.comb += uart.rx_pin.eq(uart.tx_pin)
    data = [0x00, 0xFF, 0x7E, 0x55, 0xAA, 0x01, 0x80]
    assert pump(m, uart.tx, data, uart.rx, cycles * 10 * 10, calm=1.0) == data


def test_divisor_of_the_clock() -> None:
    assert divisor(100e6, 3_000_000) == 33
    with pytest.raises(
        InputError, match="a clock of 27 MHz cannot give 4000000 baud within 2 %: the nearest is 3857143"
    ):
        divisor(27e6, 4_000_000)
