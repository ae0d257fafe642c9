/* What the files of the C runtime share with one another. Not for users of a compiled model. */
#ifndef XNORC_INTERNAL_H
#define XNORC_INTERNAL_H

#include "xnorc.h"

/* Hidden: in a process that also holds libtvm (Python with TVM, say) the kernels of a shared library must bind to these
 * definitions and not to the ones of the same name over there. */
#if defined(__GNUC__) || defined(__clang__)
#define XNORC_HIDDEN __attribute__((visibility("hidden")))
#else
#define XNORC_HIDDEN
#endif

#ifdef XNORC_NO_THREADS_SUPPORT
#define XNORC_THREAD_LOCAL
#else
#define XNORC_THREAD_LOCAL _Thread_local
#endif

enum { XNORC_MOST_THREADS = 64 }; /* size of the static pool */

/* The arena holds slices of this many bytes: everything in it is aligned to XNORC_ARENA_ALIGN. */
static inline uint64_t xnorc_i_round(uint64_t bytes) {
    return (bytes + XNORC_ARENA_ALIGN - 1) / XNORC_ARENA_ALIGN * XNORC_ARENA_ALIGN;
}

/* Scratch memory of one thread, a stack: kernels free in the opposite order of allocating. */
typedef struct {
    uint8_t *base;  /* of this thread's slice */
    uint64_t size;  /* of one slice */
    uint64_t used;
    int exhausted;  /* a kernel asked for more than there was */
    uint32_t team;  /* threads that a launch from this thread may use; 1 inside a launch */
    int tasks;      /* iterations of the loop that this thread launches next; 0: nobody said */
} xnorc_i_workspace;

extern XNORC_HIDDEN XNORC_THREAD_LOCAL xnorc_i_workspace xnorc_i_work;

/* Threads that xnorc_set_threads asked for. */
XNORC_HIDDEN uint32_t xnorc_i_threads(void);

/* Have workers that sleep come back: a run is about to begin. */
XNORC_HIDDEN void xnorc_i_wake(void);

/* Kernels call it before a parallel loop of `count` iterations. Returns 0. */
XNORC_HIDDEN int xnorc_tasks(int count);

/* Where the bytes of records come from and go to. `read` and `write` return 0 on success. `lend` gives the next bytes where
 * they lie, to be read only, or NULL where they must be read; it may be NULL itself. */
typedef struct {
    int (*read)(void *self, void *to, uint64_t bytes);
    int (*write)(void *self, const void *from, uint64_t bytes);
    const void *(*lend)(void *self, uint64_t bytes);
    void *self;
} xnorc_i_stream;

enum { XNORC_I_STREAM_FAILED = 100 }; /* status beside xnorc_status: read or write failed */

/* Serve one record of a mode. `scratch` as in xnorc_serve. */
XNORC_HIDDEN int xnorc_i_serve_one(const xnorc_model *model, xnorc_mode mode, const xnorc_i_stream *stream,
                                   uint8_t *scratch);

/* What is wrong with the model or the memory given for it, or XNORC_OK. */
XNORC_HIDDEN xnorc_status xnorc_i_check(const xnorc_model *model, const void *arena, uint64_t arena_bytes);

/* What TVM's kernels call (tvm/runtime/c_backend_api.h and tvm/ffi/extra/c_env_api.h of TVM 0.27). */
typedef struct {
    void *sync_handle;
    int32_t num_task;
} TVMParallelGroupEnv;
typedef int (*FTVMParallelLambda)(int task_id, TVMParallelGroupEnv *penv, void *cdata);

XNORC_HIDDEN void *TVMBackendAllocWorkspace(int device_type, int device_id, uint64_t nbytes, int dtype_code_hint,
                                            int dtype_bits_hint);
XNORC_HIDDEN int TVMBackendFreeWorkspace(int device_type, int device_id, void *ptr);
XNORC_HIDDEN int TVMBackendParallelLaunch(FTVMParallelLambda flambda, void *cdata, int num_task);
XNORC_HIDDEN int TVMBackendParallelBarrier(int task_id, TVMParallelGroupEnv *penv);
XNORC_HIDDEN int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol);
XNORC_HIDDEN void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
XNORC_HIDDEN void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t num_parts);

#endif
