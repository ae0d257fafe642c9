/* The program that runs on a device: records in on standard input, results out on standard output.
 *
 *     runner info
 *     runner run|trace|layers|bench [--threads N]
 *
 * Exit status 0, or 2 after one line on standard error. runner.h describes the protocol. No heap and no stdio: every
 * buffer is static. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"
#include "runner.h"

_Static_assert(sizeof(xnorc_header) == 32, "the header has no padding");
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the protocol is little-endian"
#endif

static const char *const mode_names[] = {"run", "trace", "layers", "bench"};

/* ---- output ---- */

static struct {
    uint8_t bytes[65536];
    size_t used;
} out;

static int send_all(int to, const void *from, size_t bytes) {
    const uint8_t *next = from;
    while (bytes) {
        ssize_t sent = write(to, next, bytes);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return -1;
        next += sent;
        bytes -= (size_t)sent;
    }
    return 0;
}

static int flush(void) {
    size_t bytes = out.used;
    out.used = 0;
    return send_all(STDOUT_FILENO, out.bytes, bytes);
}

static int put(void *self, const void *from, uint64_t bytes) {
    (void)self;
    if (bytes > sizeof out.bytes - out.used && flush()) return -1;
    if (bytes > sizeof out.bytes) return send_all(STDOUT_FILENO, from, (size_t)bytes);
    memcpy(out.bytes + out.used, from, (size_t)bytes);
    out.used += (size_t)bytes;
    return 0;
}

static void put_text(const char *text) { (void)put(NULL, text, strlen(text)); }

/* Decimal digits of `value`; `buffer` holds 21. */
static const char *decimal(uint64_t value, char *buffer) {
    char *next = buffer + 20;
    *next = 0;
    do {
        *--next = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    return next;
}

static void put_number(uint64_t value) {
    char buffer[21];
    put_text(decimal(value, buffer));
}

static void put_string(const char *text) {
    static const char digits[] = "0123456789abcdef";
    put_text("\"");
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        char escape[] = {'\\', 'u', '0', '0', digits[c >> 4], digits[c & 15], 0};
        if (c == '"' || c == '\\') {
            put_text("\\");
            (void)put(NULL, text, 1);
        } else if (c < 0x20) {
            put_text(escape);
        } else {
            (void)put(NULL, text, 1);
        }
    }
    put_text("\"");
}

/* ---- errors: one line, exit status 2 ---- */

static struct {
    char text[512];
    size_t used;
} line;

static void say(const char *text) {
    size_t bytes = strlen(text), room = sizeof line.text - 1 - line.used;
    if (bytes > room) bytes = room;
    memcpy(line.text + line.used, text, bytes);
    line.used += bytes;
}

static void say_number(uint64_t value) {
    char buffer[21];
    say(decimal(value, buffer));
}

static int fail(void) {
    line.text[line.used++] = '\n';
    (void)send_all(STDERR_FILENO, line.text, line.used);
    return 2;
}

static int fail_with(const char *text) {
    say("runner: ");
    say(text);
    return fail();
}

/* ---- input ---- */

static uint64_t received; /* whole records */

static int get(void *self, void *to, uint64_t bytes) {
    (void)self;
    uint8_t *next = to;
    while (bytes) {
        ssize_t taken = read(STDIN_FILENO, next, (size_t)bytes);
        if (taken < 0 && errno == EINTR) continue;
        if (taken <= 0) return -1;
        next += taken;
        bytes -= (uint64_t)taken;
    }
    return 0;
}

/* ---- the verbs ---- */

static void put_tensors(const xnorc_model *model, const uint32_t *indices, uint32_t count) {
    static const char *const dtypes[] = {"float32", "int8", "uint8", "int32", "int64", "bool", "float16"};
    put_text("[");
    for (uint32_t i = 0; i < count; i++) {
        const xnorc_tensor *tensor = &model->tensors[indices[i]];
        put_text(i ? ", {\"name\": " : "{\"name\": ");
        put_string(tensor->name);
        put_text(", \"dtype\": ");
        put_string(tensor->dtype < sizeof dtypes / sizeof *dtypes ? dtypes[tensor->dtype] : "?");
        put_text(", \"shape\": [");
        for (uint32_t axis = 0; axis < tensor->rank; axis++) {
            if (axis) put_text(", ");
            put_number(tensor->shape[axis]);
        }
        put_text("]}");
    }
    put_text("]");
}

static int info(const xnorc_model *model) {
    put_text("{\"name\": ");
    put_string(model->name);
    put_text(", \"abi\": ");
    put_number(model->abi);
    put_text(", \"protocol\": ");
    put_number(XNORC_PROTOCOL);
    put_text(", \"arena_bytes\": ");
    put_number(model->arena_bytes);
    put_text(", \"workspace_bytes\": ");
    put_number(model->workspace_bytes);
    put_text(", \"max_threads\": ");
    put_number(model->max_threads);
    put_text(", \"steps\": ");
    put_number(model->n_steps);
    put_text(", \"inputs\": ");
    put_tensors(model, model->inputs, model->n_inputs);
    put_text(", \"outputs\": ");
    put_tensors(model, model->outputs, model->n_outputs);
    put_text("}\n");
    return flush() ? fail_with("standard output is closed") : 0;
}

static int serve(const xnorc_model *model, xnorc_mode mode, uint32_t threads) {
    xnorc_header header;
    if (get(NULL, &header, sizeof header)) return fail_with("the input ended within its header");
    if (memcmp(header.magic, "XNRQ", 4)) return fail_with("the input is not a request (bad magic)");
    if (header.version != XNORC_PROTOCOL) return fail_with("the request has another protocol version");
    if (header.mode != (uint32_t)mode) return fail_with("the request is for another mode than the command line");
    if (header.threads != threads) return fail_with("the request is for other --threads than the command line");
    uint64_t expected = xnorc_request_bytes(model, mode);
    if (header.record_bytes != expected) {
        say("runner: the request has records of ");
        say_number(header.record_bytes);
        say(" bytes, the model needs ");
        say_number(expected);
        return fail();
    }
    uint64_t count = header.count;
    memcpy(header.magic, "XNRS", 4);
    header.record_bytes = xnorc_response_bytes(model, mode);
    if (put(NULL, &header, sizeof header) || flush()) return fail_with("standard output is closed");

    const xnorc_i_stream stream = {get, put, NULL, NULL};
    for (received = 0; received < count; received++) {
        int status = xnorc_i_serve_one(model, mode, &stream, xnorc_this_scratch);
        if (status == XNORC_OK && flush()) status = XNORC_I_STREAM_FAILED;
        if (status == XNORC_OK) continue;
        say("runner: input ");
        say_number(received + 1);
        say(" of ");
        say_number(count);
        say(": ");
        say(status == XNORC_I_STREAM_FAILED ? "the input ended or the output was closed"
                                            : xnorc_status_text((xnorc_status)status));
        return fail();
    }
    if (put(NULL, "XNRE", 4) || put(NULL, &count, sizeof count) || flush())
        return fail_with("standard output is closed");
    return 0;
}

/* The number in `text`, or 0 when it is none or too large. */
static uint32_t positive(const char *text) {
    uint32_t value = 0;
    if (!*text) return 0;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || value > 9999) return 0;
        value = value * 10 + (uint32_t)(*text - '0');
    }
    return value;
}

int main(int argc, char **argv) {
    const xnorc_model *model = xnorc_this_model();
    if (model->abi != XNORC_ABI) return fail_with("the model has another ABI than the runner");
    if (argc == 2 && !strcmp(argv[1], "info")) return info(model);
    int mode = -1;
    for (int i = 0; argc >= 2 && i < 4; i++)
        if (!strcmp(argv[1], mode_names[i])) mode = i;
    uint32_t threads = 1;
    if (argc == 4 && !strcmp(argv[2], "--threads")) threads = positive(argv[3]);
    else if (argc != 2) mode = -1;
    if (mode < 0) return fail_with("usage: runner info|run|trace|layers|bench [--threads N]");
    if (threads < 1 || threads > model->max_threads) {
        say("runner: --threads must be between 1 and ");
        say_number(model->max_threads);
        return fail();
    }
    if (xnorc_this_scratch_bytes < xnorc_scratch_bytes(model) ||
        xnorc_i_check(model, xnorc_this_scratch, xnorc_this_scratch_bytes) != XNORC_OK)
        return fail_with("the model and its scratch memory do not fit (a defect of the compiler)");
    xnorc_status status = xnorc_set_threads(threads);
    if (status != XNORC_OK) return fail_with(xnorc_status_text(status));
    return serve(model, (xnorc_mode)mode, threads);
}
