// Streams words through an accelerator, and counts its cycles.
//
//   board IN OUT FRAME EMPTY REFUSE SEED
//
// takes IN words of XNORC_IN_BITS bits from standard input and gives OUT words of XNORC_OUT_BITS bits, FRAME of them a result.
// EMPTY and REFUSE: percent of cycles in which there is no word, or none is taken. With XNORC_DIRECT the accelerator lies in a
// design that lets one speak to it, past the link. Standard error ends with the cycles, as JSON.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "Vtop.h"
#include "verilated.h"

namespace {

constexpr size_t kIn = (XNORC_IN_BITS + 7) / 8, kOut = (XNORC_OUT_BITS + 7) / 8;

// The bytes of a port: Verilator has whole numbers up to 64 bits, arrays of words beyond.
template <class Number>
void* bytes_of(Number& port) {
    return &port;
}
template <std::size_t words>
void* bytes_of(VlWide<words>& port) {
    return port.data();
}

uint64_t state;
bool chance(int percent) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return percent > 0 && static_cast<int>(state % 100) < percent;
}

// (Verilator writes two underscores in a row as ___05F.)
int stream(int argc, char** argv) {
    if (argc != 7) {
        std::fprintf(stderr, "usage\n");
        return 2;
    }
    const uint64_t words_in = std::strtoull(argv[1], nullptr, 10), words_out = std::strtoull(argv[2], nullptr, 10);
    const uint64_t frame = std::strtoull(argv[3], nullptr, 10);
    const int empty = std::atoi(argv[4]), refuse = std::atoi(argv[5]);
    state = 0x9E3779B97F4A7C15ull * (std::strtoull(argv[6], nullptr, 10) + 1);
    VerilatedContext context;
    Vtop* top = new Vtop(&context);
    unsigned char word[kIn > kOut ? kIn : kOut];
#ifdef XNORC_DIRECT
    top->direct = 1;
    top->tx_ready = 1;
#endif
    top->rst = 1;
    for (int i = 0; i < 4; i++) {
        top->clk = 0;
        top->eval();
        top->clk = 1;
        top->eval();
    }
    top->rst = 0;
    uint64_t sent = 0, got = 0, begun = 0, first = 0, total = 0, idle = 0;
    bool held = false;
    for (uint64_t cycle = 0; got < words_out; cycle++) {
        top->clk = 0;
        if (!held && sent < words_in && !chance(empty)) {
            if (std::fread(word, 1, kIn, stdin) != kIn) {
                std::fprintf(stderr, "the input ended early\n");
                return 1;
            }
            std::memcpy(bytes_of(top->input___05Fpayload), word, kIn);
            held = true;
        }
        top->input___05Fvalid = held;
        top->output___05Fready = !chance(refuse);
        top->eval();
        const bool taken = held && top->input___05Fready, given = top->output___05Fvalid && top->output___05Fready;
        if (given) {
            std::memcpy(word, bytes_of(top->output___05Fpayload), kOut);
            std::fwrite(word, 1, kOut, stdout);
        }
        top->clk = 1;
        top->eval();
        if (taken) {
            held = false;
            if (sent++ == 0) begun = cycle;
        }
        if (given) {
            got++;
            total = cycle + 1 - begun;
            if (got == frame) first = total;
        }
        idle = taken || given ? 0 : idle + 1;
        if (idle > 10000000) {
            std::fprintf(stderr, "the design stopped after %llu of %llu words\n", (unsigned long long)got,
                         (unsigned long long)words_out);
            return 1;
        }
    }
    std::fflush(stdout);
    std::fprintf(stderr, "{\"first\": %llu, \"total\": %llu}\n", (unsigned long long)first, (unsigned long long)total);
    return 0;
}

}  // namespace
