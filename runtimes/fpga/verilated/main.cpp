// Moves the link's bytes between a design (wires.cpp) and a pseudo-terminal or standard input and output.
//
//   board pty    opens a pseudo-terminal, prints the name of its other end, and runs until it is killed
//   board        bytes from standard input, bytes to standard output; ends when standard input does
//
// When nothing moves for a while, the clock runs slowly, in real time.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#ifdef __linux__
#include <sys/prctl.h>
#endif

namespace {

constexpr uint64_t kIdleCycles = 200000;  // without any byte, before the clock slows down
constexpr uint64_t kSlice = 20000;        // cycles a millisecond then

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
    power_up();
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
