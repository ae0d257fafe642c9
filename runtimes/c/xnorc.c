/* Running a compiled model: once (xnorc_run), or record by record in one of the modes (xnorc_serve). */
#define _POSIX_C_SOURCE 200809L
#include <string.h>
#include <time.h>

#include "internal.h"

const char *xnorc_status_text(xnorc_status status) {
    switch (status) {
        case XNORC_OK: return "ok";
        case XNORC_BAD_ARGUMENT: return "bad argument: null or misaligned pointer, small arena, other ABI or unknown mode";
        case XNORC_NO_WORKSPACE: return "a kernel asked for more scratch memory than was planned";
        case XNORC_KERNEL_FAILED: return "a kernel failed";
        case XNORC_NO_THREADS: return "threads could not be started";
    }
    return "unknown status";
}

static int aligned(const void *pointer, uintptr_t to) { return (uintptr_t)pointer % to == 0; }

xnorc_status xnorc_i_check(const xnorc_model *model, const void *arena, uint64_t arena_bytes) {
    if (!model || model->abi != XNORC_ABI || model->max_threads < 1) return XNORC_BAD_ARGUMENT;
    if ((!arena && model->arena_bytes) || !aligned(arena, XNORC_ARENA_ALIGN)) return XNORC_BAD_ARGUMENT;
    if (arena_bytes < model->arena_bytes) return XNORC_BAD_ARGUMENT;
    if (model->workspace_bytes) {
        uint64_t slices = xnorc_i_round(model->workspace_bytes) * model->max_threads;
        if (model->workspace_place % XNORC_ARENA_ALIGN || model->workspace_place > model->arena_bytes ||
            slices > model->arena_bytes - model->workspace_place)
            return XNORC_BAD_ARGUMENT;
    }
    return XNORC_OK;
}

/* Give this thread the model's scratch memory and the team it may use. */
static void enter(const xnorc_model *model, uint8_t *arena) {
    uint32_t threads = xnorc_i_threads();
    xnorc_i_work = (xnorc_i_workspace){
        .base = model->workspace_bytes ? arena + model->workspace_place : NULL,
        .size = xnorc_i_round(model->workspace_bytes),
        .team = threads < model->max_threads ? threads : model->max_threads,
    };
    if (xnorc_i_work.team > 1) xnorc_i_wake();
}

static xnorc_status run_step(const xnorc_step *step, const xnorc_frame *frame) {
    xnorc_i_work.used = 0;
    xnorc_i_work.exhausted = 0;
    int32_t result = step->run(frame);
    if (xnorc_i_work.exhausted) return XNORC_NO_WORKSPACE;
    return result ? XNORC_KERNEL_FAILED : XNORC_OK;
}

xnorc_status xnorc_run(const xnorc_model *model, void *arena, size_t arena_bytes, const void *const *inputs,
                       void *const *outputs) {
    xnorc_status status = xnorc_i_check(model, arena, arena_bytes);
    if (status != XNORC_OK) return status;
    if ((model->n_inputs && !inputs) || (model->n_outputs && !outputs)) return XNORC_BAD_ARGUMENT;
    for (uint32_t i = 0; i < model->n_inputs; i++)
        if (!inputs[i] || !aligned(inputs[i], 16)) return XNORC_BAD_ARGUMENT;
    for (uint32_t i = 0; i < model->n_outputs; i++)
        if (!outputs[i] || !aligned(outputs[i], 16)) return XNORC_BAD_ARGUMENT;
    enter(model, arena);
    const xnorc_frame frame = {arena, inputs, outputs};
    for (uint32_t i = 0; i < model->n_steps && status == XNORC_OK; i++) status = run_step(&model->steps[i], &frame);
    return status;
}

/* ---- records ---- */

static uint64_t bytes_of(const xnorc_model *model, const uint32_t *indices, uint32_t count) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; i++) total += model->tensors[indices[i]].bytes;
    return total;
}

static const uint32_t *reads(const xnorc_model *model, const xnorc_step *step) { return model->operands + step->first_read; }

static const uint32_t *writes(const xnorc_model *model, const xnorc_step *step) { return model->operands + step->first_write; }

static int known(xnorc_mode mode) {
    return mode == XNORC_RUN || mode == XNORC_TRACE || mode == XNORC_LAYERS || mode == XNORC_BENCH;
}

uint64_t xnorc_request_bytes(const xnorc_model *model, xnorc_mode mode) {
    if (!known(mode)) return 0;
    if (mode != XNORC_LAYERS) return bytes_of(model, model->inputs, model->n_inputs);
    uint64_t total = 0;
    for (uint32_t i = 0; i < model->n_steps; i++) total += bytes_of(model, reads(model, &model->steps[i]), model->steps[i].n_reads);
    return total;
}

uint64_t xnorc_response_bytes(const xnorc_model *model, xnorc_mode mode) {
    if (!known(mode)) return 0;
    if (mode == XNORC_RUN) return bytes_of(model, model->outputs, model->n_outputs);
    if (mode == XNORC_BENCH) return model->n_steps * (uint64_t)sizeof(uint64_t);
    uint64_t total = 0;
    for (uint32_t i = 0; i < model->n_steps; i++)
        total += bytes_of(model, writes(model, &model->steps[i]), model->steps[i].n_writes);
    return total;
}

/* Scratch memory of a server: the arena, then every input and output in a place of its own, then the pointers to them.
 * runner.h has the same sum as a rule for generated code. */
uint64_t xnorc_scratch_bytes(const xnorc_model *model) {
    uint64_t total = xnorc_i_round(model->arena_bytes);
    for (uint32_t i = 0; i < model->n_inputs; i++) total += xnorc_i_round(model->tensors[model->inputs[i]].bytes);
    for (uint32_t i = 0; i < model->n_outputs; i++) total += xnorc_i_round(model->tensors[model->outputs[i]].bytes);
    return total + xnorc_i_round(((uint64_t)model->n_inputs + model->n_outputs) * sizeof(uint64_t));
}

static uint8_t *place_of(const xnorc_tensor *tensor, const xnorc_frame *frame) {
    if (tensor->space == 0) return frame->arena + tensor->place;
    /* The caller's inputs are constant for kernels; a server owns the copies that it fills. */
    if (tensor->space == 1) return (uint8_t *)(uintptr_t)frame->inputs[tensor->place];
    return frame->outputs[tensor->place];
}

static int read_all(const xnorc_model *model, const uint32_t *indices, uint32_t count, const xnorc_frame *frame,
                    const xnorc_i_stream *stream) {
    for (uint32_t i = 0; i < count; i++) {
        const xnorc_tensor *tensor = &model->tensors[indices[i]];
        if (stream->read(stream->self, place_of(tensor, frame), tensor->bytes)) return XNORC_I_STREAM_FAILED;
    }
    return XNORC_OK;
}

static int write_all(const xnorc_model *model, const uint32_t *indices, uint32_t count, const xnorc_frame *frame,
                     const xnorc_i_stream *stream) {
    for (uint32_t i = 0; i < count; i++) {
        const xnorc_tensor *tensor = &model->tensors[indices[i]];
        if (stream->write(stream->self, place_of(tensor, frame), tensor->bytes)) return XNORC_I_STREAM_FAILED;
    }
    return XNORC_OK;
}

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int xnorc_i_serve_one(const xnorc_model *model, xnorc_mode mode, const xnorc_i_stream *stream, uint8_t *scratch) {
    uint8_t *next = scratch + xnorc_i_round(model->arena_bytes);
    uint64_t in_out = 0;
    for (uint32_t i = 0; i < model->n_inputs; i++) in_out += xnorc_i_round(model->tensors[model->inputs[i]].bytes);
    for (uint32_t i = 0; i < model->n_outputs; i++) in_out += xnorc_i_round(model->tensors[model->outputs[i]].bytes);
    void **pointers = (void **)(void *)(next + in_out);
    void **inputs = pointers, **outputs = pointers + model->n_inputs;
    for (uint32_t i = 0; i < model->n_inputs; i++) {
        inputs[i] = next;
        next += xnorc_i_round(model->tensors[model->inputs[i]].bytes);
    }
    for (uint32_t i = 0; i < model->n_outputs; i++) {
        outputs[i] = next;
        next += xnorc_i_round(model->tensors[model->outputs[i]].bytes);
    }
    const xnorc_frame frame = {scratch, (const void *const *)inputs, outputs};

    enter(model, scratch);
    int status = XNORC_OK;
    for (uint32_t i = 0; i < model->n_inputs && mode != XNORC_LAYERS && status == XNORC_OK; i++) {
        const void *lent = stream->lend ? stream->lend(stream->self, model->tensors[model->inputs[i]].bytes) : NULL;
        if (lent)
            inputs[i] = (void *)(uintptr_t)lent; /* constant for kernels */
        else
            status = read_all(model, model->inputs + i, 1, &frame, stream);
    }
    for (uint32_t i = 0; i < model->n_steps && status == XNORC_OK; i++) {
        const xnorc_step *step = &model->steps[i];
        if (mode == XNORC_LAYERS) status = read_all(model, reads(model, step), step->n_reads, &frame, stream);
        if (status != XNORC_OK) break;
        uint64_t begin = mode == XNORC_BENCH ? nanoseconds() : 0;
        status = (int)run_step(step, &frame);
        if (status != XNORC_OK) break;
        if (mode == XNORC_BENCH) {
            uint64_t taken = nanoseconds() - begin;
            if (stream->write(stream->self, &taken, sizeof taken)) status = XNORC_I_STREAM_FAILED;
        } else if (mode != XNORC_RUN) {
            status = write_all(model, writes(model, step), step->n_writes, &frame, stream);
        }
    }
    if (mode == XNORC_RUN && status == XNORC_OK)
        status = write_all(model, model->outputs, model->n_outputs, &frame, stream);
    return status;
}

typedef struct {
    const uint8_t *from;
    uint8_t *to;
} memory;

static int read_memory(void *self, void *to, uint64_t bytes) {
    memory *place = self;
    memcpy(to, place->from, (size_t)bytes);
    place->from += bytes;
    return 0;
}

static const void *lend_memory(void *self, uint64_t bytes) {
    memory *place = self;
    const void *lent = place->from;
    if (!aligned(lent, 16)) return NULL;
    place->from += bytes;
    return lent;
}

static int write_memory(void *self, const void *from, uint64_t bytes) {
    memory *place = self;
    memcpy(place->to, from, (size_t)bytes);
    place->to += bytes;
    return 0;
}

xnorc_status xnorc_serve(const xnorc_model *model, xnorc_mode mode, const uint8_t *request, uint8_t *response,
                         uint64_t count, void *scratch) {
    if (!model || !known(mode) || !scratch || (count && (!request || !response))) return XNORC_BAD_ARGUMENT;
    xnorc_status checked = xnorc_i_check(model, scratch, model->arena_bytes);
    if (checked != XNORC_OK) return checked;
    memory place = {request, response};
    const xnorc_i_stream stream = {read_memory, write_memory, lend_memory, &place};
    for (uint64_t i = 0; i < count; i++) {
        int status = xnorc_i_serve_one(model, mode, &stream, scratch);
        if (status != XNORC_OK) return (xnorc_status)status;
    }
    return XNORC_OK;
}
