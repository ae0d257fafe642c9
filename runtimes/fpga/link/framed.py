"""An accelerator behind the link: byte streams that speak the protocol on one side, its own words on the other."""

from __future__ import annotations

from math import ceil
from typing import Any, Protocol

from amaranth import Cat, ClockDomain, DomainRenamer, Elaboratable, Module, Signal
from amaranth.back import verilog
from amaranth.hdl import Shape
from amaranth.lib import data, stream, wiring
from amaranth.lib.cdc import FFSynchronizer, PulseSynchronizer, ResetSynchronizer
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from ....errors import InputError
from .buffer import PacketBuffer
from .crossing import Crossing
from .protocol import DESIGN_BYTES, HELLO, MAGIC, MAX_PAYLOAD, VERSION
from .receiver import JOB, Receiver
from .transmitter import Transmitter
from .widths import BytesToWords, Relay, WordsToBytes

PAYLOAD_BYTES = 1024
"""About how many bytes of images, or of results, one frame may hold; a single larger image or result is a frame too."""
GAP_SECONDS = 0.05
"""How long the next byte of a frame may take. USB serial adapters hold bytes back for up to 16 ms."""
_JOBS = 4
_HELD = 16
"""Cycles of a reset that reaches a second clock: its crossings are empty and its registers reset by then."""


class Accelerator(Protocol):
    """What the link needs of an accelerator: images in at ``input``, results out at ``output``, in the same order.

    An item of ``frame_in_bits`` or ``frame_out_bits`` bits is little-endian, in words of the stream's width; the last
    word is padded with zeros.
    """

    input: Any
    output: Any
    frame_in_bits: int
    frame_out_bits: int


def verilog_of(design: Elaboratable, name: str, ports: list[Signal], accelerator: Accelerator) -> str:
    """Verilog of a design around ``accelerator``, with the modules that its ``technology`` writes itself, if it has one."""
    text = verilog.convert(design, name=name, ports=ports, strip_internal_attrs=True)
    shared = getattr(getattr(accelerator, "technology", None), "shared", {})
    return "\n".join([text, *shared.values()])


class Framed(wiring.Component):
    """``rx``: bytes from the host; ``tx``: bytes to the host; ``busy``: images are in the accelerator.

    Whoever uses it makes its ``domain`` the domain ``sync``. ``design``: 16 bytes that name the design (a content hash),
    given to the host with the sizes and ``clock_hz``. With ``link_hz`` that domain is the link's alone, whose clock has so
    many Hz, and the accelerator has the domain ``core``, whose clock (of ``clock_hz``) its user drives; it is in reset with
    the link. Raises ``InputError`` when an image or a result does not fit a frame.
    """

    _MustUse__silence = True  # one that was refused is not elaborated: Amaranth would warn beside our message

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        design: bytes = bytes(DESIGN_BYTES),
        clock_hz: float = 0.0,
        link_hz: float | None = None,
        gap_cycles: int | None = None,
        payload_bytes: int = PAYLOAD_BYTES,
    ) -> None:
        if len(design) != DESIGN_BYTES:
            raise InputError(f"the design's hash has {len(design)} bytes in place of {DESIGN_BYTES}")
        self.accelerator, self.design = accelerator, design
        self.image_bytes, self.result_bytes = ceil(accelerator.frame_in_bits / 8), ceil(accelerator.frame_out_bits / 8)
        for what, size in (("an image", self.image_bytes), ("a result", self.result_bytes)):
            if not 1 <= size <= MAX_PAYLOAD:
                raise InputError(
                    f"{what} of this accelerator has {size} bytes: a frame of the link holds {MAX_PAYLOAD}"
                )
        self.images = max(1, min(payload_bytes // self.image_bytes, payload_bytes // self.result_bytes))
        self.max_payload = self.images * self.image_bytes
        # Two payloads: one is received while the other is computed.
        self.buffer_bytes = 1 << (2 * self.max_payload - 1).bit_length()
        if gap_cycles is None:
            gap_cycles = max(1000, round(GAP_SECONDS * (link_hz or clock_hz)))
        self.gap_cycles = gap_cycles
        self.hello = HELLO.pack(
            MAGIC, VERSION, 0, self.max_payload, self.buffer_bytes, design,
            accelerator.frame_in_bits, accelerator.frame_out_bits, round(clock_hz),
        )  # fmt: skip
        self.domain, self.core = ClockDomain("sync"), ClockDomain("core")
        self.two_clocks = link_hz is not None
        self._direct: dict[str, Signal] = {}
        super().__init__({"rx": In(stream.Signature(8)), "tx": Out(stream.Signature(8)), "busy": Out(1)})

    def elaborate(self, platform: Any) -> Module:
        """Receiver → buffer → words → accelerator → bytes → transmitter, and the jobs beside them."""
        m = Module()
        core = self.accelerator
        width_in, width_out = (Shape.cast(port.payload.shape()).width for port in (core.input, core.output))
        # A register alone drives the reset of everything behind it: it crosses the chip, and has all of a cycle for that.
        reset = Signal(init=1)
        m.submodules.receiver = receiver = Receiver(
            self.image_bytes, self.result_bytes, self.max_payload, self.gap_cycles
        )
        buffer = PacketBuffer(self.buffer_bytes)
        words = BytesToWords(core.frame_in_bits, width_in)
        octets = WordsToBytes(core.frame_out_bits, width_out)
        jobs = SyncFIFO(width=JOB.size, depth=_JOBS)
        transmitter = Transmitter(self.hello)
        # No logic goes through these: what one part waits for does not reach back through the next, as far as the accelerator.
        relay, sending = Relay(width_out), Relay(8)
        # ``RESET`` throws away what all of these hold; its own job is written afterwards. Domains of their own, since that
        # reaches Verilog modules too, which Amaranth cannot look into.
        link_domain = ClockDomain("link")
        link_domain.clk = self.domain.clk
        m.domains += [link_domain, self.core]
        m.d.comb += link_domain.rst.eq(reset)
        for name, part in {
            "buffer": buffer, "words": words, "bytes": octets, "jobs": jobs, "transmitter": transmitter, "sending": sending,
        }.items():  # fmt: skip
            m.submodules[name] = DomainRenamer("link")(part)
        for name, part in {"accelerator": core, "relay": relay}.items():
            m.submodules[name] = DomainRenamer("core")(part)
        to_core, from_core = words.output, relay.output
        if self.two_clocks:
            m.submodules.core_reset = ResetSynchronizer(reset, domain="core")
            m.submodules.there, m.submodules.back = there, back = (
                Crossing(width_in, "link", "core"), Crossing(width_out, "core", "link"),
            )  # fmt: skip
            wiring.connect(m, words.output, there.input)
            wiring.connect(m, relay.output, back.input)
            to_core, from_core = there.output, back.output
            left = Signal(range(_HELD), init=_HELD - 1)
            with m.If(receiver.reset):
                m.d.sync += [reset.eq(1), left.eq(_HELD - 1)]
            with m.Elif(left != 0):
                m.d.sync += left.eq(left - 1)
            with m.Else():
                m.d.sync += reset.eq(0)
        else:
            self.core.clk = self.domain.clk
            m.d.comb += self.core.rst.eq(reset)
            m.d.sync += reset.eq(receiver.reset)
        wiring.connect(m, wiring.flipped(self.rx), receiver.input)
        wiring.connect(m, buffer.output, words.input)
        wiring.connect(m, from_core, octets.input)
        wiring.connect(m, octets.output, transmitter.results)
        wiring.connect(m, transmitter.output, sending.input)
        wiring.connect(m, sending.output, wiring.flipped(self.tx))
        m.d.comb += [
            buffer.data.eq(receiver.data),
            buffer.write.eq(receiver.write),
            buffer.commit.eq(receiver.commit),
            buffer.rollback.eq(receiver.rollback),
            receiver.full.eq(buffer.full),
            jobs.w_data.eq(receiver.job.payload),
            jobs.w_en.eq(receiver.job.valid),
            receiver.job.ready.eq(jobs.w_rdy),
            transmitter.job.payload.eq(data.View(JOB, jobs.r_data)),
            transmitter.job.valid.eq(jobs.r_rdy),
            jobs.r_en.eq(transmitter.job.ready),
            core.input.payload.eq(to_core.payload),
            core.input.valid.eq(to_core.valid),
            to_core.ready.eq(core.input.ready),
            relay.input.payload.eq(core.output.payload),
            relay.input.valid.eq(core.output.valid),
            core.output.ready.eq(relay.input.ready),
        ]
        if self._direct:
            self._bypass(m, reset, to_core, relay.input)
        m.d.comb += receiver.held.eq(reset)
        self._count(m, receiver, transmitter)
        return m

    def _bypass(self, m: Module, reset: Signal, words: Any, results: Any) -> None:
        """A way to the accelerator's streams past the link, while ``direct``. Behind the reset, which ends a cycle late,
        it takes nothing: a word would be lost."""
        core, ports = self.accelerator, self._direct
        m.d.comb += [
            ports["input__ready"].eq(core.input.ready & ~reset),
            ports["output__payload"].eq(core.output.payload),
            ports["output__valid"].eq(core.output.valid),
        ]
        with m.If(ports["direct"]):
            m.d.comb += [
                core.input.payload.eq(ports["input__payload"]),
                core.input.valid.eq(ports["input__valid"]),
                words.ready.eq(0),
                results.valid.eq(0),
                core.output.ready.eq(ports["output__ready"]),
            ]

    def verilog(self, direct: bool = False) -> str:
        """The component as Verilog, module ``top``: ``clk``, ``rst``, ``rx_valid`` and so on. For simulation.

        ``direct``: with ports ``input__*`` and ``output__*`` too, which reach the accelerator while ``direct`` is 1.
        """
        m = Module()
        if direct:
            core = self.accelerator
            for name, port in (("input", core.input), ("output", core.output)):
                self._direct[f"{name}__payload"] = Signal(len(port.payload), name=f"{name}__payload")
                self._direct |= {f"{name}__{bit}": Signal(name=f"{name}__{bit}") for bit in ("valid", "ready")}
            self._direct["direct"] = Signal(name="direct")
        m.domains += self.domain
        m.submodules.framed = self
        ports = {"clk": self.domain.clk, "rst": self.domain.rst}
        for stream_name, port in (("rx", self.rx), ("tx", self.tx)):
            for member, inward in (("payload", True), ("valid", True), ("ready", False)):
                name, inside = f"{stream_name}_{member}", getattr(port, member)
                ports[name] = outside = Signal(len(inside), name=name)
                into = inward == (stream_name == "rx")
                m.d.comb += inside.eq(outside) if into else outside.eq(inside)
        return verilog_of(m, "top", [*ports.values(), *self._direct.values()], self.accelerator)

    def _count(self, m: Module, receiver: Receiver, transmitter: Transmitter) -> None:
        """The counters of ``STATUS``: cycles of the accelerator's clock."""
        core = self.accelerator
        busy, done = Signal(), transmitter.done
        cycles = Signal(32)
        last = Signal(32)
        shown, answered = last, busy
        if self.two_clocks:
            # The count rests while it is read, unless images are under way again.
            shown, answered = Signal(32), Signal()
            m.submodules.pulse = pulse = PulseSynchronizer("link", "core")
            m.submodules.last = FFSynchronizer(last, shown)
            m.submodules.busy = FFSynchronizer(busy, answered)
            m.d.comb += pulse.i.eq(done)
            done = pulse.o
        with m.If(~busy):
            m.d.core += [cycles.eq(1), busy.eq(core.input.valid & core.input.ready)]
        with m.Else():
            m.d.core += cycles.eq(cycles + 1)
            with m.If(core.output.valid & core.output.ready):
                m.d.core += last.eq(cycles + 1)
            with m.If(done):
                m.d.core += busy.eq(0)
        m.d.comb += [self.busy.eq(answered), transmitter.status.eq(Cat(shown, receiver.good, receiver.bad))]
