/* xnorc C runtime: what a compiled model is, and how to run it. C11, no heap, no dependency but libc, libm, pthread.
 *
 * A compiled library exports `const xnorc_model *<name>_model(void)` (declared in <name>.h) and the functions below.
 */
#ifndef XNORC_H
#define XNORC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { XNORC_ABI = 2, XNORC_MAX_RANK = 8, XNORC_ARENA_ALIGN = 64 };

typedef enum { XNORC_FLOAT32, XNORC_INT8, XNORC_UINT8, XNORC_INT32, XNORC_INT64, XNORC_BOOL, XNORC_FLOAT16 } xnorc_dtype;

/* Shape and place of a tensor. bytes = product of shape times element size. */
typedef struct {
    const char *name;
    uint32_t dtype; /* xnorc_dtype */
    uint32_t rank;
    uint32_t shape[XNORC_MAX_RANK];
    uint64_t bytes;
    uint32_t space; /* 0: arena at `place` bytes; 1: model input number `place`; 2: model output number `place` */
    uint64_t place;
} xnorc_tensor;

/* What a step reads and writes: the caller's arena, inputs and outputs. */
typedef struct {
    uint8_t *arena;
    const void *const *inputs;
    void *const *outputs;
} xnorc_frame;

/* One kernel call. What it reads and writes: n tensors from xnorc_model.operands[first] on. run returns 0 on success. */
typedef struct {
    const char *name;
    int32_t (*run)(const xnorc_frame *frame);
    uint32_t first_read, n_reads, first_write, n_writes;
} xnorc_step;

typedef struct {
    uint32_t abi; /* XNORC_ABI */
    const char *name;
    uint64_t arena_bytes;     /* what xnorc_run needs: tensors, then workspace for max_threads threads */
    uint64_t workspace_place; /* offset of the workspace in the arena */
    uint64_t workspace_bytes; /* scratch memory of one thread; 0 when no kernel needs any */
    uint32_t max_threads;
    uint32_t n_tensors, n_inputs, n_outputs, n_steps;
    const xnorc_tensor *tensors;
    const uint32_t *inputs, *outputs, *operands; /* index tensors; operands: of all steps, one after another */
    const xnorc_step *steps;
} xnorc_model;

typedef enum {
    XNORC_OK = 0,
    XNORC_BAD_ARGUMENT = 1, /* null pointer, misaligned or too small arena, ABI mismatch, unknown mode */
    XNORC_NO_WORKSPACE = 2, /* a kernel asked for more scratch memory than was planned */
    XNORC_KERNEL_FAILED = 3,
    XNORC_NO_THREADS = 4
} xnorc_status;

const char *xnorc_status_text(xnorc_status status);

/* Run the model once. `arena` must be XNORC_ARENA_ALIGN-aligned and hold model->arena_bytes; inputs[i] and outputs[i]
 * are the tensors in the order of model->inputs and model->outputs, aligned to 16 bytes. Allocates nothing. */
xnorc_status xnorc_run(const xnorc_model *model, void *arena, size_t arena_bytes, const void *const *inputs,
                       void *const *outputs);

/* Number of threads that later runs use (1 to model->max_threads; starts workers at the first call with more than 1).
 * One model runs at a time in a process when more than 1 is used. xnorc_set_threads(1) ends the workers: call it before
 * unloading a shared library. */
xnorc_status xnorc_set_threads(uint32_t threads);

/* Bytes of one request and one response record in a mode. A record is tensors one after another, without gaps.
 *   RUN:    inputs → outputs
 *   TRACE:  inputs → for each step in order, its writes
 *   LAYERS: for each step in order, its reads → for each step in order, its writes (each step runs on the given reads)
 *   BENCH:  inputs → for each step, uint64 nanoseconds of one execution */
typedef enum { XNORC_RUN, XNORC_TRACE, XNORC_LAYERS, XNORC_BENCH } xnorc_mode;
uint64_t xnorc_request_bytes(const xnorc_model *model, xnorc_mode mode);
uint64_t xnorc_response_bytes(const xnorc_model *model, xnorc_mode mode);

/* Serve `count` records held in memory. `scratch` holds xnorc_scratch_bytes(model) and is XNORC_ARENA_ALIGN-aligned. */
uint64_t xnorc_scratch_bytes(const xnorc_model *model);
xnorc_status xnorc_serve(const xnorc_model *model, xnorc_mode mode, const uint8_t *request, uint8_t *response,
                         uint64_t count, void *scratch);

#ifdef __cplusplus
}
#endif
#endif
