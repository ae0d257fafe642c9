"""Scheduled TIR to one object file of plain C functions.

TVM's own entry points unpack arguments from its packed calling convention. On a device there is no TVM, so the pipeline
here is the standard one with that step replaced: a function whose parameters are buffers becomes
``int32_t name(void *a, void *b, ...)``, returning 0. What the object still needs is named in ``runtimes/c``.
"""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType
from tvm.tirx.build import codegen_build

if TYPE_CHECKING:
    from ..targets import Target

DEVICE_CPU = 1


def tvm_target(target: Target) -> tvm.target.Target:
    """TVM's description of a target."""
    return tvm.target.Target(dict(target.llvm))


def _plain_c(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Turn buffer parameters into pointers, and return 0."""
    params, prologue = [], []
    for param in func.params:
        buffer_type = param.ty
        pointer = tirx.Var(param.name, PointerType(buffer_type.dtype, "global"))
        params.append(pointer)
        prologue.append(tirx.DeclBuffer(param, data=pointer))
    zero = tirx.IntImm("int32", 0)
    body = tirx.SeqStmt([*prologue, func.body])
    # The attributes are a scope of their own: scratch memory is given back at its end, which must be before the return.
    body = tirx.AttrStmt(zero, "device_id", zero, body)
    body = tirx.AttrStmt(zero, "device_type", tirx.IntImm("int32", DEVICE_CPU), body)
    body = tirx.SeqStmt([body, tirx.Return(zero)])
    attrs = dict(func.attrs.items()) if func.attrs else {}
    made = tirx.PrimFunc(params, body, ret_type=PrimType("int32"), attrs=tvm.ir.make_node("ir.DictAttrs", **attrs))
    return made.with_attr("calling_conv", 0)


@tvm.transform.module_pass(opt_level=0, name="xnorc.PlainC")
class PlainC:
    """Module pass: every function to the plain C convention."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply to every PrimFunc."""
        return tvm.IRModule({gv: _plain_c(func) for gv, func in mod.functions.items()}, attrs=mod.attrs)


def _announce(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Put a call of the runtime's ``xnorc_tasks`` in front of every parallel loop: TVM's launch does not say its extent."""

    def announced(loop: tirx.For) -> tirx.Stmt:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        count = tirx.call_extern("int32", "xnorc_tasks", tirx.Cast("int32", loop.extent))
        return tirx.SeqStmt([tirx.Evaluate(count), loop])

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, announced)))


@tvm.transform.module_pass(opt_level=0, name="xnorc.AnnounceTasks")
class AnnounceTasks:
    """Module pass: every parallel loop says how many iterations it has."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Apply to every PrimFunc."""
        return tvm.IRModule({gv: _announce(func) for gv, func in mod.functions.items()}, attrs=mod.attrs)


LOWER = [
    s_tir.transform.CanonicalizeLoop(),
    s_tir.transform.LowerInitBlock(),
    s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
    s_tir.transform.ConvertBlocksToOpaque(),
    s_tir.transform.CompactBufferAllocation(),
    s_tir.transform.LowerMatchBuffer(),
    s_tir.transform.StmtSimplify(),
    s_tir.transform.AnnotateIrregularLoop(),
    s_tir.transform.LowerOpaqueBlock(),
    tirx.transform.FlattenBuffer(),
    tirx.transform.NarrowDataType(32),
    s_tir.transform.LoopPartition(),
    tirx.transform.VectorizeLoop(True),
    tirx.transform.StorageRewrite(),
    s_tir.transform.HoistIfThenElse(),
    tirx.transform.UnrollLoop(),
    s_tir.transform.RenormalizeSplitPattern(),
    tirx.transform.StmtSimplify(),
    tirx.transform.RemoveNoOp(),
    s_tir.transform.RewriteUnsafeSelect(),
    tirx.transform.CommonSubexprElim(),
    tirx.transform.VerifyMemory(),
    AnnounceTasks(),
    PlainC(),
]
"""TVM's standard CPU pipeline (``tvm/s_tir/pipeline.py``) without its GPU passes, and with ``AnnounceTasks`` and ``PlainC``."""

FINISH = [tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()]

STACK_BYTES = 1024
"""Scratch buffers below this size are put on the stack by ``LowerTVMBuiltin``; larger ones ask for workspace."""


def without_unwinding(data: bytes) -> bytes:
    """An ELF object whose tables for unwinding the stack (``.eh_frame``) are inactive: no kernel throws, and they take room."""
    made = bytearray(data)
    wide = made[4] == 2  # ELFCLASS64
    (start,) = struct.unpack_from("<Q" if wide else "<I", made, 40 if wide else 32)
    size, count, names = struct.unpack_from("<3H", made, 58 if wide else 46)

    def header(index: int) -> tuple[int, int]:
        """Offsets of a section's name and of its content."""
        place = start + index * size
        return struct.unpack_from("<I", made, place)[0], struct.unpack_from(
            "<Q" if wide else "<I", made, place + (24 if wide else 16)
        )[0]

    _, texts = header(names)
    for index in range(count):
        first = texts + header(index)[0]
        if bytes(made[first : made.index(0, first)]) in (b".eh_frame", b".rela.eh_frame", b".rel.eh_frame"):
            struct.pack_into("<I", made, start + index * size + 4, 0)  # SHT_NULL
    return bytes(made)


@dataclass(frozen=True)
class Machine:
    """Machine code of a set of kernels. ``workspace``: scratch bytes that one thread of each kernel may ask for."""

    module: Any
    workspace: dict[str, int]

    def object(self) -> bytes:
        """The bytes of one ELF object file."""
        with tempfile.TemporaryDirectory(prefix="xnorc-") as folder:
            path = Path(folder) / "kernels.o"
            self.module.write_to_file(str(path))
            return without_unwinding(path.read_bytes())

    def assembly(self) -> str:
        """The assembly text."""
        return str(self.module.inspect_source("asm"))


def _workspace(func: tirx.PrimFunc) -> int:
    """Scratch bytes of all buffers of a lowered function that do not fit the stack, as if all were alive at once."""
    total = 0

    def visit(node: tirx.AllocBuffer) -> None:
        nonlocal total
        kind = node.buffer.ty
        scalar, _, lanes = str(kind.dtype).partition("x")
        element = np.dtype(scalar).itemsize * int(lanes or 1)
        size = int(np.prod([int(extent) for extent in kind.shape], dtype=np.int64)) * element
        total += -(-size // 64) * 64 if size >= STACK_BYTES else 0

    tvm_ffi.structural_walk(func.body, (tirx.AllocBuffer, visit))
    return total


def build(mod: tvm.IRModule, target: Target) -> Machine:
    """Compile scheduled TIR functions to machine code; each becomes a C function with the name that it has in ``mod``."""
    described = tvm_target(target)
    mod = tvm.IRModule({gv: func.with_attr("global_symbol", gv.name_hint) for gv, func in mod.functions.items()})
    # A "system library" calls the runtime by name; any other finds it through pointers that TVM would fill in.
    mod = mod.with_attr("system_lib_prefix", "")
    mod = tirx.transform.BindTarget(described.with_host(described))(mod)
    mod = tvm.ir.transform.Sequential(LOWER)(mod)
    workspace = {gv.name_hint: _workspace(func) for gv, func in mod.functions.items()}
    mod = tvm.ir.transform.Sequential(FINISH)(mod)
    return Machine(codegen_build(mod, described), workspace)


def build_object(mod: tvm.IRModule, target: Target) -> bytes:
    """Machine code of TIR functions as the bytes of one ELF object file."""
    return build(mod, target).object()


def assembly(mod: tvm.IRModule, target: Target) -> str:
    """The assembly that TVM's LLVM emits for TIR functions."""
    return build(mod, target).assembly()
