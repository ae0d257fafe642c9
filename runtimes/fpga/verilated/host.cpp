// Plays the host to a design (wires.cpp): requests of the link from standard input, their replies to standard output.
//
//   board link WINDOW    sends a request once fewer than WINDOW are unanswered
//   board WORDS ...      words straight to the accelerator, where the design has a way to it: see stream.cpp
//
// A request is two little-endian numbers of 32 bits (its bytes, those of its reply) and its bytes. Nothing here knows of wall
// time: the same requests take the same cycles. Standard error ends with their number, as JSON.
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

constexpr uint64_t kPatience = 20000000;  // cycles without a byte after which the design is given up

struct Request {
    uint32_t sizes[2];
    std::vector<uint8_t> bytes;
};

std::vector<Request> requests() {
    std::vector<Request> found;
    Request next;
    while (std::fread(next.sizes, 1, sizeof next.sizes, stdin) == sizeof next.sizes) {
        next.bytes.resize(next.sizes[0]);
        if (std::fread(next.bytes.data(), 1, next.bytes.size(), stdin) != next.bytes.size()) break;
        found.push_back(next);
    }
    return found;
}

int link(size_t window) {
    const std::vector<Request> script = requests();
    const std::unique_ptr<Vtop> owned(new Vtop(&context));
    design = owned.get();
    power_up();
    uint64_t quiet = 0, cycles = 0;
    size_t sent = 0, answered = 0;
    uint32_t got = 0;
    for (; answered < script.size(); ++cycles) {
        if (sent < script.size() && sent < answered + window) {
            to_design.insert(to_design.end(), script[sent].bytes.begin(), script[sent].bytes.end());
            ++sent;
        }
        quiet = step() ? 0 : quiet + 1;
        for (; !from_design.empty(); from_design.pop_front()) {
            std::putchar(from_design.front());
            if (++got == script[answered].sizes[1]) {
                ++answered;
                got = 0;
            }
        }
        if (quiet > kPatience) {
            std::fprintf(stderr, "the design stopped after %zu of %zu requests\n", answered, script.size());
            return 1;
        }
    }
    std::fflush(stdout);
    std::fprintf(stderr, "{\"cycles\": %llu}\n", (unsigned long long)cycles);
    design->final();
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 3 && std::strcmp(argv[1], "link") == 0) return link(std::strtoull(argv[2], nullptr, 10));
#ifdef XNORC_DIRECT
    return stream(argc, argv);
#else
    return 2;
#endif
}
