// Runs a Verilated design and moves the link's bytes between it and a pseudo-terminal or standard input and output.
//
//   board pty    opens a pseudo-terminal, prints the name of its other end, and runs until it is killed
//   board        bytes from standard input, bytes to standard output; ends when standard input does
//
// Built with XNORC_CYCLES=n, the design is a board's top level, whose pins rx and tx take n cycles for a bit. Without it,
// the design has the byte streams themselves. When nothing moves for a while, the clock runs slowly, in real time.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "Vtop.h"
#include "verilated.h"

namespace {

constexpr uint64_t kIdleCycles = 200000;  // without any byte, before the clock slows down
constexpr uint64_t kSlice = 20000;        // cycles a millisecond then
constexpr size_t kHeld = 1 << 16;         // most bytes held in either direction

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

int open_terminal() {
    const int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) {
        std::perror("board: no pseudo-terminal");
        std::exit(1);
    }
    // Held open here too: the terminal stays when the other side closes it, and starts out raw.
    const int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    termios raw;
    tcgetattr(slave, &raw);
    cfmakeraw(&raw);
    tcsetattr(slave, TCSANOW, &raw);
    std::printf("%s\n", ptsname(master));
    std::fflush(stdout);
    return master;
}

// Moves what can be moved without waiting. Returns whether the input has ended.
bool exchange(int in, int out) {
    uint8_t bytes[4096];
    bool ended = false;
    if (to_design.size() < kHeld) {
        const ssize_t got = read(in, bytes, sizeof bytes);
        if (got > 0) to_design.insert(to_design.end(), bytes, bytes + got);
        ended = got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR && errno != EIO);
    }
    while (!from_design.empty()) {
        size_t size = 0;
        for (; size < sizeof bytes && size < from_design.size(); ++size) bytes[size] = from_design[size];
        const ssize_t put = write(out, bytes, size);
        if (put < 0 && errno == EPIPE) std::exit(0);
        if (put <= 0) break;
        from_design.erase(from_design.begin(), from_design.begin() + put);
    }
    return ended;
}

}  // namespace

int main(int argc, char** argv) {
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGTERM);
#endif
    signal(SIGPIPE, SIG_IGN);
    const bool terminal = argc > 1 && std::strcmp(argv[1], "pty") == 0;
    const int in = terminal ? open_terminal() : 0, out = terminal ? in : 1;
    fcntl(in, F_SETFL, fcntl(in, F_GETFL) | O_NONBLOCK);
    fcntl(out, F_SETFL, fcntl(out, F_GETFL) | O_NONBLOCK);
    const std::unique_ptr<Vtop> owned(new Vtop(&context));
    design = owned.get();
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
    uint64_t quiet = 0;
    for (;;) {
        const bool ended = exchange(in, out);
        const bool idle = quiet > kIdleCycles && to_design.empty();
        if (ended && !terminal && idle && from_design.empty()) break;
        if (idle) {
            pollfd wait = {in, POLLIN, 0};
            if (!ended) poll(&wait, 1, 1);
        }
        for (uint64_t cycle = 0, end = idle ? kSlice : 512; cycle < end; ++cycle) {
            quiet = step() ? 0 : quiet + 1;
            if (idle && quiet == 0) break;
        }
    }
    design->final();
    return 0;
}
