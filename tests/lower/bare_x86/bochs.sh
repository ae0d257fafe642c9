#!/bin/sh
# Builds Bochs with AVX-512 in build/bochs, for tests/lower/test_avx512.py: about 5 minutes; needs git, make and a C++ compiler.
#   tests/lower/bare_x86/bochs.sh [SOURCES]    SOURCES: a checkout of github.com/bochs-emu/Bochs, else it is fetched
# Mended in it: KSHIFTLW and KSHIFTRW by 15 give the last bit, not 0; VPINSRB (EVEX) has an operand of one byte.
set -eu
cd "$(dirname "$0")/../../.."
mkdir -p build/bochs
sources=${1:-build/bochs/sources}
[ -d "$sources" ] || git clone --depth 1 https://github.com/bochs-emu/Bochs "$sources"
cp "$sources/bochs/bios/BIOS-bochs-latest" "$sources/bochs/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin" build/bochs/
rm -rf build/bochs/made
cp -r "$sources/bochs" build/bochs/made
cd build/bochs/made
sed -i 's/count < 15/count < 16/' cpu/avx/avx512_mask16.cc
sed -i '/BX_IA_EVEX_VPINSRB_VdqEbIb,/s/OP_Hdq, OP_Ew/OP_Hdq, OP_Eb/' cpu/decoder/ia_opcodes_evex.def
./configure --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --enable-all-optimizations --disable-plugins \
    --disable-docbook --without-x --without-x11 --with-nogui >configure.log 2>&1
make >make.log 2>&1
mv bochs ../bochs
