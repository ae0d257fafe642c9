"""How sums are built on a device: portable Verilog, or the ECP5's carry cells where they hold more than an adder.

A cell of the ECP5's carry chain (``CCU2C``: two positions) computes at each position ``S = P xor CIN`` and
``COUT = CIN if P else G``, with P a table of A, B, C, D and G a table of A and B, namely P's own entries at C = D = 0
(Lattice FPGA-TN-02210 describes the slice; yosys' ``ccu2c_sim.vh`` the cell). Two things fit that yosys does not find:

* the XNOR of an input and a weight as the carry into a chain: P = 0, G = A xnor B;
* an accumulator that may begin anew from D: with A the addend, B the sum so far and C "go on", P = A xor (C ? B : D) and
  G = A, which is P at C = D = 0. A choice and an addition at one table a bit.

Such a sum is a small Verilog module of its own: one line of arithmetic for every reader and simulator, and carry cells
where ``SYNTHESIS`` is defined (yosys does so by itself). A test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from amaranth.back import verilog
from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

Family = Literal["generic", "ecp5"]
Pair = tuple[Value, Value]

_ADD, _XNOR_CARRY, _BIT_CARRY, _ACCUMULATE, _SPARE = 0x66AA, 0x0009, 0x000A, 0x656A, 0x0000
_NONE = "1'b0", "1'b0", "1'b0", "1'b0"


@dataclass
class Technology:
    """What units are built for. ``share``: modules that occur many times are emitted once (for Verilog, not for Amaranth's
    simulator). ``shared``: their text by name, filled as units are elaborated.
    """

    family: Family = "generic"
    share: bool = False
    shared: dict[str, str] = field(default_factory=dict)
    _signatures: dict[str, wiring.Signature] = field(default_factory=dict)

    @property
    def port_shapes(self) -> tuple[tuple[int, int], ...]:
        """Bits and words of a block memory's port, widest first, if each of its two has an output register; else none."""
        return ((18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384)) if self.family == "ecp5" else ()

    def add(self, m: Module, left: Value, right: Value, width: int, carry: Value | Pair | None, name: str) -> Value:
        """``left + right + carry`` in ``width`` bits, as logic; a carry that is a pair is its XNOR."""
        if self.family == "generic":
            if carry is None:
                return (left + right)[:width]
            bit = ~(carry[0] ^ carry[1]) if isinstance(carry, tuple) else carry
            # One position below the numbers, 1 + bit, makes the carry: a single chain, not two.
            return (Cat(Const(1, 1), left) + Cat(bit, right))[1 : width + 1]
        form = "" if carry is None else "_xnor" if isinstance(carry, tuple) else "_carry"
        kind = f"add_{len(left)}_{len(right)}_to_{width}{form}"
        if kind not in self.shared:
            self.shared[kind] = _adder(kind, len(left), len(right), width, form)
        total = Signal(width, name=f"{name}_total")
        ports = {"i_left": left, "i_right": right, "o_total": total}
        if isinstance(carry, tuple):
            ports |= {"i_x": carry[0], "i_w": carry[1]}
        elif carry is not None:
            ports["i_carry"] = carry
        m.submodules[name] = Instance(kind, **ports)
        return total

    def accumulate(self, m: Module, addend: Value, sofar: Value, go_on: Value, begin: Value, name: str) -> Value:
        """``addend + (sofar if go_on else begin)`` in the width of ``sofar``, as logic."""
        if self.family == "generic":
            return (addend + Mux(go_on, sofar, begin))[: len(sofar)]
        kind = f"accumulate_{len(addend)}_to_{len(sofar)}"
        if kind not in self.shared:
            self.shared[kind] = _accumulator(kind, len(addend), len(sofar))
        total = Signal(len(sofar), name=f"{name}_total")
        m.submodules[name] = Instance(kind, i_addend=addend, i_sofar=sofar, i_go_on=go_on, i_start=begin, o_total=total)
        return total

    def table(self, m: Module, address: Value, words: list[int], width: int, name: str) -> Value | None:
        """Word ``address`` of up to 16 as logic: a LUT4 a bit, written out so that synthesis does not make the bits of one
        another and put tables behind tables. None where it is left to synthesis.
        """
        if self.family == "generic" or not 4 < len(words) <= 16:
            return None
        text = _table(words, width)
        kind = next((kind for kind, other in self.shared.items() if other == f"module {kind}{text}"), None)
        if kind is None:
            kind = f"table_{sum(kind.startswith('table_') for kind in self.shared)}"
            self.shared[kind] = f"module {kind}{text}"
        word = Signal(width, name=f"{name}_word")
        m.submodules[f"{name}_table"] = Instance(kind, i_address=Cat(address, Const(0, 4))[:4], o_total=word)
        return word

    def place(self, m: Module, make: Callable[[], wiring.Component], name: str, kind: str) -> Any:
        """Make a component part of ``m`` as ``name``, and give the object that has its ports.

        ``kind`` names what ``make`` makes, the same for equal components; shared ones are made once.
        """
        if not self.share:
            m.submodules[name] = component = make()
            return component
        if kind not in self.shared:
            component = make()
            text = verilog.convert(component, name=kind, strip_internal_attrs=True)
            # Verilator then compiles it once, not once for every place.
            self.shared[kind] = text.replace(");", "); /* verilator no_inline_module */", 1)
            self._signatures[kind] = component.signature
        interface = self._signatures[kind].create()
        ports: dict[str, Value] = {}
        for port, member in self._signatures[kind].members.items():
            ports[("i_" if member.flow == In else "o_") + port] = getattr(interface, port)
        header = self.shared[kind].split(f"module {kind}(", 1)[1].split(");", 1)[0]
        for port, value in (("clk", ClockSignal()), ("rst", ResetSignal())):
            if port in [word.strip() for word in header.split(",")]:
                ports[f"i_{port}"] = value
        m.submodules[name] = Instance(kind, **ports)
        return interface


def _adder(kind: str, left: int, right: int, width: int, form: str) -> str:
    """Verilog of ``left + right`` and a carry: none, a bit, or the XNOR of two."""
    extra = {"": "", "_carry": ", input carry", "_xnor": ", input x, input w"}[form]
    value = {"": "", "_carry": " + carry", "_xnor": " + {x ~^ w}"}[form]
    positions = [(_ADD, _bit("left", i, left), _bit("right", i, right), "1'b0", "1'b1") for i in range(width)]
    skip = bool(form)
    if form:
        first = (_XNOR_CARRY, "x", "w") if form == "_xnor" else (_BIT_CARRY, "carry", "1'b0")
        positions.insert(0, (*first, "1'b0", "1'b1"))
    return (
        f"module {kind}(input [{left - 1}:0] left, input [{right - 1}:0] right{extra}, output [{width - 1}:0] total);\n"
        + _choice(positions, width, skip, f"left + right{value}")
    )


def _accumulator(kind: str, addend: int, width: int) -> str:
    """Verilog of an addend and either the sum so far or a start."""
    positions = [(_ACCUMULATE, _bit("addend", i, addend), f"sofar[{i}]", "go_on", f"start[{i}]") for i in range(width)]
    span = f"[{width - 1}:0]"
    return (
        f"module {kind}(input [{addend - 1}:0] addend, input {span} sofar, input go_on, input {span} start,\n"
        f"    output {span} total);\n" + _choice(positions, width, False, "addend + (go_on ? sofar : start)")
    )


def _table(words: list[int], width: int) -> str:
    """Verilog, but for the module's name, of a table of up to 16 words: bit i of them is a LUT4, or a choice of words."""
    inits = "".join(f"{sum((word >> i & 1) << k for k, word in enumerate(words)):04x}" for i in reversed(range(width)))
    cases = "".join(f"    4'd{k}: word = {width}'h{word:x};\n" for k, word in enumerate(words))
    return (
        f"(input [3:0] address, output [{width - 1}:0] total);\n`ifdef SYNTHESIS\n"
        f"  localparam [{16 * width - 1}:0] inits = {16 * width}'h{inits};\n  genvar i;\n"
        f"  generate for (i = 0; i < {width}; i = i + 1) begin : bits\n"
        "    LUT4 #(.INIT(inits[16 * i +: 16])) lut(.A(address[0]), .B(address[1]), .C(address[2]), .D(address[3]),\n"
        "      .Z(total[i]));\n"
        f"  end endgenerate\n`else\n  reg [{width - 1}:0] word;\n  assign total = word;\n  always @(*) case (address)\n"
        f"{cases}    default: word = 0;\n  endcase\n`endif\nendmodule\n"
    )


def _choice(positions: list[tuple[int, str, str, str, str]], width: int, skip: bool, formula: str) -> str:
    """The body: carry cells for synthesis, the formula for all others. ``skip``: the first position makes no sum.

    A spare position goes first where the first one would be a sum: what comes into the chain then does not matter, and no
    cell is needed in front that makes it 0 (``netlist.loosen``).
    """
    if len(positions) % 2:
        positions = [*positions, (_SPARE, *_NONE)] if skip else [(_SPARE, *_NONE), *positions]
        skip = True
    cells = []
    for i in range(0, len(positions), 2):
        parts = []
        for half, (_, a, b, c, d) in enumerate(positions[i : i + 2]):
            place = i + half - skip
            out = f"total[{place}]" if 0 <= place < width else ""
            parts.append(f".A{half}({a}), .B{half}({b}), .C{half}({c}), .D{half}({d}), .S{half}({out})")
        inits = f".INIT0(16'h{positions[i][0]:04x}), .INIT1(16'h{positions[i + 1][0]:04x})"
        carry = "1'b0" if i == 0 else f"chain[{i // 2 - 1}]"
        cells.append(
            f'  CCU2C #({inits}, .INJECT1_0("NO"), .INJECT1_1("NO")) cell{i // 2}(.CIN({carry}), .COUT(chain[{i // 2}]),\n'
            f"    {parts[0]},\n    {parts[1]});\n"
        )
    return (
        f"`ifdef SYNTHESIS\n  wire [{len(cells) - 1}:0] chain;\n{''.join(cells)}`else\n"
        f"  assign total = {formula};\n`endif\nendmodule\n"
    )


def _bit(name: str, index: int, width: int) -> str:
    return f"{name}[{index}]" if index < width else "1'b0"
