/* What the runner (runner.c) expects of the generated file it is linked with.
 *
 * The generated C file defines, when compiled with -DXNORC_RUNNER,
 *
 *     const xnorc_model *xnorc_this_model(void) { return &the_model; }
 *     _Alignas(XNORC_ARENA_ALIGN) uint8_t xnorc_this_scratch[SCRATCH];
 *     const uint64_t xnorc_this_scratch_bytes = SCRATCH;
 *
 * SCRATCH is at least xnorc_scratch_bytes(model): with R(n) = n rounded up to a multiple of 64,
 *
 *     R(arena_bytes) + sum of R(bytes) over inputs and outputs + R(8 * (number of inputs + number of outputs))
 *
 * The array is zero-initialised (.bss): it adds nothing to the executable. The runner checks the size as it starts. */
#ifndef XNORC_RUNNER_H
#define XNORC_RUNNER_H

#include "xnorc.h"

const xnorc_model *xnorc_this_model(void);
extern uint8_t xnorc_this_scratch[];
extern const uint64_t xnorc_this_scratch_bytes;

/* The protocol of the runner's standard input and output, little-endian.
 *   request:   header "XNRQ", records                  (record_bytes = xnorc_request_bytes)
 *   response:  header "XNRS", records, trailer         (record_bytes = xnorc_response_bytes)
 * Every response record is sent as soon as it is done; the trailer tells a whole response from one cut short. */
enum { XNORC_PROTOCOL = 1 };

typedef struct {
    char magic[4];
    uint32_t version; /* XNORC_PROTOCOL */
    uint32_t mode;    /* xnorc_mode */
    uint32_t threads;
    uint64_t count;
    uint64_t record_bytes;
} xnorc_header; /* 32 bytes */

/* trailer: "XNRE", uint64 count: 12 bytes */

#endif
