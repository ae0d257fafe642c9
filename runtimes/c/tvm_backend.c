/* The few functions of TVM's runtime that compiled kernels call, without TVM: scratch memory and no-ops.
 *
 * Scratch memory is a stack in the arena, one slice a thread. The slice is workspace_bytes of the model rounded up to
 * XNORC_ARENA_ALIGN, and so is every allocation: a plan must add up the rounded sizes of the deepest nesting. */
#include "internal.h"

XNORC_THREAD_LOCAL xnorc_i_workspace xnorc_i_work;

void *TVMBackendAllocWorkspace(int device_type, int device_id, uint64_t nbytes, int dtype_code_hint,
                               int dtype_bits_hint) {
    (void)device_type, (void)device_id, (void)dtype_code_hint, (void)dtype_bits_hint;
    xnorc_i_workspace *work = &xnorc_i_work;
    /* A size near 2^64 would wrap when rounded: compare before rounding. An empty block takes a place of its own. */
    if (nbytes > work->size - work->used || xnorc_i_round(nbytes ? nbytes : 1) > work->size - work->used) {
        work->exhausted = 1;
        return NULL;
    }
    uint8_t *block = work->base + work->used;
    work->used += xnorc_i_round(nbytes ? nbytes : 1);
    return block;
}

int TVMBackendFreeWorkspace(int device_type, int device_id, void *ptr) {
    (void)device_type, (void)device_id;
    xnorc_i_workspace *work = &xnorc_i_work;
    uintptr_t base = (uintptr_t)work->base, place = (uintptr_t)ptr;
    if (place < base || place - base >= work->used) return -1;
    work->used = place - base;
    return 0;
}

/* Kernels register themselves when the library is loaded; the step table of the model already names them. */
int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol) {
    (void)name, (void)symbol;
    return 0;
}

/* A kernel that fails says why before it returns; the step's name and the status are what xnorc reports. */
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) { (void)kind, (void)message; }

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t num_parts) {
    (void)kind, (void)parts, (void)num_parts;
}

#if defined(__arm__) && defined(__ARM_EABI__)
/* TVM's LLVM calls some 64-bit conversions by their generic names; on 32-bit Arm the compiler's library has them only
 * under the names of the ABI, which is what these conversions compile to. */
__attribute__((weak, visibility("hidden"))) float __floatdisf(int64_t value) { return (float)value; }
__attribute__((weak, visibility("hidden"))) float __floatundisf(uint64_t value) { return (float)value; }
__attribute__((weak, visibility("hidden"))) double __floatdidf(int64_t value) { return (double)value; }
__attribute__((weak, visibility("hidden"))) double __floatundidf(uint64_t value) { return (double)value; }
__attribute__((weak, visibility("hidden"))) int64_t __fixsfdi(float value) { return (int64_t)value; }
__attribute__((weak, visibility("hidden"))) uint64_t __fixunssfdi(float value) { return (uint64_t)value; }
#endif
