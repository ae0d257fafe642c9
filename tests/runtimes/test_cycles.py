"""The Pi model: counts are exact and belong to their steps, prices are those of llvm-mca, missing tools are named."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import xnorc
from xnorc.cli import app
from xnorc.errors import InputError, ToolError
from xnorc.package import Package
from xnorc.runtimes.cycles import model_cycles
from xnorc.runtimes.cycles.cores import core_of
from xnorc.runtimes.cycles.count import Block, Image, count_instructions, read_counts
from xnorc.runtimes.cycles.price import Pricer, disassemble
from xnorc.targets import get

from . import small

QEMU = pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="needs Debian's qemu-user")
MCA = pytest.mark.skipif(not shutil.which("llvm-mca"), reason="needs Debian's llvm")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    path = tmp_path_factory.mktemp("cycles") / "small.xnorc"
    xnorc.compile(small.build(), "rpi4").save(path)
    return xnorc.load(path)


@QEMU
def test_counts_are_repeatable_and_every_step_has_its_own(package: Package) -> None:
    first, second = model_cycles(package), model_cycles(package)
    assert [step.instructions for step in first.steps] == [step.instructions for step in second.steps]
    assert [step.name for step in first.steps] == [step["name"] for step in package.manifest["steps"]]
    assert all(step.instructions > 10 for step in first.steps)
    assert first.instructions == sum(step.instructions for step in first.steps)
    # The first convolution has 36 · 8 outputs of 18 products; nothing computes more than four of them an instruction.
    conv = next(step for step in first.steps if step.op.startswith("Conv"))
    assert conv.instructions >= conv.macs / 4


@QEMU
def test_a_short_step_is_sampled_whole(package: Package) -> None:
    """Also where its code runs for the first time in the middle of the sample: QEMU translates it only then."""
    golden = package.golden().items()
    counts = count_instructions(package, {name.removeprefix("input/"): x[:1] for name, x in golden if "input/" in name})
    whole = 0
    for blocks, samples in zip(counts.steps, counts.samples, strict=True):
        assert samples
        if len(samples) == 1:
            assert Counter(samples[0]) == blocks
            whole += 1
    assert whole


@QEMU
@MCA
def test_cycles_are_instructions_priced(package: Package) -> None:
    result = model_cycles(package)
    for step in result.steps:
        assert step.cycles is not None and step.ms is not None
        assert step.instructions / 8 < step.cycles < step.instructions * 40
        assert step.ms == pytest.approx(step.cycles / 1.5e6 + step.memory_ms)
    assert any("modelled" in note for note in result.notes)


@QEMU
@MCA
def test_command_line(package: Package, tmp_path: Path) -> None:
    path = tmp_path / "small.xnorc"
    package.save(path)
    done = CliRunner().invoke(
        app, ["bench", str(path), "--device", "qemu", "--cycles", "--json", str(tmp_path / "c.json")]
    )
    assert done.exit_code == 0, done.output
    assert "modelled on Raspberry Pi 4" in done.output and "not measured" in done.output
    assert '"instructions"' in (tmp_path / "c.json").read_text()


def test_other_devices_are_refused(package: Package, tmp_path: Path) -> None:
    path = tmp_path / "small.xnorc"
    package.save(path)
    done = CliRunner().invoke(app, ["bench", str(path), "--device", "host", "--cycles"])
    assert done.exit_code == 2 and "--device qemu" in done.output


def test_without_the_dynamic_qemu_it_says_what_to_install(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolError, match="qemu-user"):
        model_cycles(package)


def test_only_boards_have_a_model() -> None:
    with pytest.raises(InputError, match="rpi4"):
        core_of(get("aarch64"))


# Each waits for the one before; a vector addition takes 3 cycles on these cores.
CHAINED = "add v0.16b, v0.16b, v1.16b"


@MCA
def test_a_chain_of_additions_costs_their_latency() -> None:
    target = get("rpi4")
    pricer = Pricer(target, core_of(target))
    assert pricer.alone([[CHAINED] * 4, [CHAINED]]) == pytest.approx([12, 3], rel=0.05)
    assert disassemble([Block(0, 1, bytes.fromhex("0084214e"))] * 2, target) == [["add\tv0.16b, v0.16b, v1.16b"]] * 2


@MCA
def test_stretches_break_the_dependencies_that_repetition_invents() -> None:
    """A block that starts with a fresh register and one that goes on from it: in order they overlap with other such pairs."""
    target = get("rpi4")
    pricer = Pricer(target, core_of(target))
    fresh, chain = ["movi v0.2d, #0"], [CHAINED] * 4
    assert pricer.alone([chain]) == pytest.approx([12], rel=0.05)
    warm, cycles = pricer.stretches([[fresh, chain] * 200])[0]
    assert 0 < warm < 200 and cycles / (400 - warm) * 2 < 6


@MCA
def test_without_a_model_of_the_core_there_are_no_prices() -> None:
    target = get("rpi2")
    with pytest.raises(ToolError, match="Raspberry Pi 2"):
        Pricer(target, core_of(target))


def elf(code: bytes, address: int = 0x1000) -> bytes:
    """The least 64-bit little-endian ELF file with one segment."""
    head = bytearray(64 + 56)
    head[:6] = b"\x7fELF\x02\x01"
    head[32:40] = (64).to_bytes(8, "little")
    head[54:58] = (56).to_bytes(2, "little") + (1).to_bytes(2, "little")
    head[64:68] = (1).to_bytes(4, "little")
    for at, value in ((72, len(head)), (80, address), (96, len(code))):
        head[at : at + 8] = value.to_bytes(8, "little")
    return bytes(head) + code


def test_reading_counts() -> None:
    first = "block 0 4096 1 4\nphase 0\ncount 0 9\n"
    step = "block 1 4100 2 8\nsample 0 1 1\nphase 1\ncount 1 3\ncount 0 1\n"
    text = first + step + "phase 2\nend 3\n"
    counts = read_counts(text, elf(bytes(range(12))), 1)
    assert counts.steps == [{1: 3, 0: 1}] and counts.samples == [[[1, 1]]]
    assert counts.blocks[1] == Block(4100, 2, bytes(range(4, 12)))


@pytest.mark.parametrize("text", ["phase 0\nend 1\n", "phase 0\nphase 1\nphase 2\n", "block 1 0 1 4\nend 0\n"])
def test_counts_cut_short_are_refused(text: str) -> None:
    with pytest.raises(ToolError, match=r"phases|out of order"):
        read_counts(text, elf(b""), 1)


def test_code_outside_the_program_is_empty() -> None:
    assert Image(elf(b"abcd")).read(0x1002, 4) == b""
    assert Image(elf(b"abcd")).read(0x1000, 4) == b"abcd"
    with pytest.raises(InputError, match="ELF"):
        Image(b"MZ" + bytes(100))
