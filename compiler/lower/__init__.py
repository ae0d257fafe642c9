"""Packed ONNX → TVM Relax → scheduled TIR → objects → a C library and a runner.

Data flows ``relax`` (nodes to Relax) → ``steps`` (Relax to a straight-line program) → ``schedules`` → ``plan`` (memory)
→ ``tir`` (machine code) → ``codegen`` (the C file) → ``link`` (zig). ``kernels/`` holds the kernels of ``ai.xnorc``.
Importing this package imports nothing heavy; ``xnorc.lower.build`` imports TVM.
"""
