// A Verilated design and the bytes that go in and come out of it, a cycle at a time. Who drives it (main.cpp, host.cpp)
// follows in the same file.
//
// Built with XNORC_CYCLES=n, the design is a board's top level, whose pins rx and tx take n cycles for a bit. Without it,
// the design has the byte streams themselves, and bytes take a cycle each.
#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>

#include "Vtop.h"
#include "verilated.h"

namespace {

constexpr size_t kHeld = 1 << 16;  // most bytes held in either direction

VerilatedContext context;
Vtop* design;
std::deque<uint8_t> to_design, from_design;

void tick() {
    design->clk = 0;
    design->eval();
    design->clk = 1;
    design->eval();
}

#ifdef XNORC_CYCLES

// One UART each way, as the adapter at the other end of the pins has them. Returns whether anything moved.
bool step() {
    static int sending = 0, send_timer = 0, receiving = 0, receive_timer = 0;
    static unsigned send_bits = 0, receive_bits = 0;
    if (sending == 0 && !to_design.empty()) {
        send_bits = 0x200u | to_design.front() << 1;  // start bit 0, data, stop bit 1
        to_design.pop_front();
        sending = 10;
        send_timer = XNORC_CYCLES;
    }
    design->rx = sending ? send_bits & 1 : 1;
    if (sending && --send_timer == 0) {
        send_bits >>= 1;
        --sending;
        send_timer = XNORC_CYCLES;
    }
    tick();
    if (receiving == 0) {
        if (!design->tx) {
            receiving = 10;
            receive_bits = 0;
            receive_timer = XNORC_CYCLES / 2;
        }
    } else if (--receive_timer == 0) {
        receive_bits |= unsigned(design->tx) << (10 - receiving);
        receive_timer = XNORC_CYCLES;
        if (--receiving == 0 && (receive_bits & 0x200)) from_design.push_back(receive_bits >> 1 & 0xFF);
    }
    return sending || receiving;
}

#else

bool step() {
    design->rx_valid = !to_design.empty();
    design->rx_payload = to_design.empty() ? 0 : to_design.front();
    design->tx_ready = from_design.size() < kHeld;
    design->clk = 0;
    design->eval();
    const bool taken = design->rx_valid && design->rx_ready, given = design->tx_valid && design->tx_ready;
    const uint8_t byte = design->tx_payload;
    design->clk = 1;
    design->eval();
    if (taken) to_design.pop_front();
    if (given) from_design.push_back(byte);
    return taken || given;
}

#endif

// The first cycles: out of reset, with nothing to say.
void power_up() {
#ifdef XNORC_CYCLES
    design->rx = 1;
#ifdef XNORC_RESET_LOW
    design->reset = 1;
#endif
#else
    design->rst = 1;
    tick();
    design->rst = 0;
#endif
}

}  // namespace
