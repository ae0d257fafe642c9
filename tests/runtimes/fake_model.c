/* A model written by hand, as the compiler would generate it, to test the C runtime and the devices without TVM.
 *
 *     x float32 [1, 1000] --double--> t = 2x --plus_one--> y = t + 1 (output) --to_int--> z = (int32) y (output)
 *
 * "double" is a parallel loop, "plus_one" uses scratch memory in two nested blocks, "to_int" runs as a parallel loop of
 * 5 tasks with scratch memory each. The first element of x asks for trouble: see the values below. */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <string.h>
#include <time.h>

#include "runner.h"

/* As TVM declares them. */
typedef struct {
    void *sync_handle;
    int32_t num_task;
} TVMParallelGroupEnv;
typedef int (*FTVMParallelLambda)(int task_id, TVMParallelGroupEnv *penv, void *cdata);
void *TVMBackendAllocWorkspace(int, int, uint64_t, int, int);
int TVMBackendFreeWorkspace(int, int, void *);
int TVMBackendParallelLaunch(FTVMParallelLambda, void *, int);
int TVMBackendParallelBarrier(int, TVMParallelGroupEnv *);
int TVMFFIEnvModRegisterSystemLibSymbol(const char *, void *);

enum { SIZE = 1000, MAX_THREADS = 4, WORKSPACE = 8064, TENSOR = 4032, ARENA = TENSOR + MAX_THREADS * WORKSPACE };
enum { FAIL = 10001, TOO_MUCH, SLEEP, KILL, HANG, TEAM, BAD_BARRIER, WORKER_TOO_MUCH };

typedef struct {
    const float *x;
    float *t;
    int *team;
} double_args;

static int copy_task(int task, TVMParallelGroupEnv *env, void *data) {
    double_args *args = data;
    int share = (SIZE + env->num_task - 1) / env->num_task;
    int end = share * (task + 1) < SIZE ? share * (task + 1) : SIZE;
    for (int i = share * task; i < end; i++) args->t[i] = args->x[i];
    return 0;
}

/* Reads what another task wrote in the launch before. */
static int double_task(int task, TVMParallelGroupEnv *env, void *data) {
    double_args *args = data;
    int share = (SIZE + env->num_task - 1) / env->num_task;
    int other = (task + 1) % env->num_task;
    int end = share * (other + 1) < SIZE ? share * (other + 1) : SIZE;
    for (int i = share * other; i < end; i++) args->t[i] *= 2;
    if (task == 0) *args->team = env->num_task;
    return 0;
}

static int barrier_task(int task, TVMParallelGroupEnv *env, void *data) {
    (void)data;
    return TVMBackendParallelBarrier(task, env);
}

static int32_t run_double(const xnorc_frame *frame) {
    int team = 0;
    double_args args = {frame->inputs[0], (float *)(void *)frame->arena, &team};
    int trouble = (int)args.x[0];
    if (trouble == FAIL) return -1;
    if (trouble == BAD_BARRIER && TVMBackendParallelLaunch(barrier_task, NULL, 2)) return -1;
    if (TVMBackendParallelLaunch(barrier_task, NULL, 1)) return -1;
    if (TVMBackendParallelLaunch(copy_task, &args, 0)) return -1;
    if (TVMBackendParallelLaunch(double_task, &args, 0)) return -1;
    if (trouble == TEAM) args.t[1] = (float)team;
    return 0;
}

static int32_t run_plus_one(const xnorc_frame *frame) {
    const float *t = (const float *)(const void *)frame->arena;
    float *y = frame->outputs[0];
    int trouble = (int)t[0] / 2;
    if (trouble == SLEEP) nanosleep(&(struct timespec){0, 100000000}, NULL);
    if (trouble == HANG) nanosleep(&(struct timespec){600, 0}, NULL);
    if (trouble == KILL) raise(SIGKILL);
    float *first = TVMBackendAllocWorkspace(1, 0, SIZE * sizeof(float), 2, 32);
    if (!first) return -1;
    float *second = TVMBackendAllocWorkspace(1, 0, trouble == TOO_MUCH ? (uint64_t)-1 : SIZE * sizeof(float), 2, 32);
    if (!second) return -1;
    if ((uintptr_t)first % 64 || (uintptr_t)second % 64 || second < first + SIZE) return -1;
    memcpy(first, t, SIZE * sizeof(float));
    for (int i = 0; i < SIZE; i++) second[i] = first[i] + 1;
    if (TVMBackendFreeWorkspace(1, 0, second)) return -1;
    float *again = TVMBackendAllocWorkspace(1, 0, 1, 2, 32);
    if (again != second || TVMBackendFreeWorkspace(1, 0, again)) return -1;
    memcpy(y, second, SIZE * sizeof(float));
    if (TVMBackendFreeWorkspace(1, 0, first)) return -1;
    return TVMBackendFreeWorkspace(1, 0, first) == -1 ? 0 : -1; /* freeing twice is refused */
}

typedef struct {
    const float *y;
    int32_t *z;
} int_args;

static int nothing(int task, TVMParallelGroupEnv *env, void *data) {
    ((int *)data)[task] = env->num_task;
    return 0;
}

static int int_task(int task, TVMParallelGroupEnv *env, void *data) {
    int_args *args = data;
    int share = SIZE / env->num_task, nested[3] = {0, 0, 0};
    int too_much = (int)(args->y[0] - 1) / 2 == WORKER_TOO_MUCH && task == env->num_task - 1;
    int32_t *block = TVMBackendAllocWorkspace(1, 0, too_much ? 2 * WORKSPACE : WORKSPACE, 0, 32);
    if (!block) return -1;
    for (int i = 0; i < share; i++) block[i] = (int32_t)args->y[share * task + i];
    memcpy(args->z + share * task, block, (size_t)share * sizeof *block);
    if (TVMBackendParallelLaunch(nothing, nested, 3) || nested[0] != 3 || nested[2] != 3) return -1;
    return TVMBackendFreeWorkspace(1, 0, block);
}

static int32_t run_to_int(const xnorc_frame *frame) {
    int_args args = {frame->outputs[0], frame->outputs[1]};
    return TVMBackendParallelLaunch(int_task, &args, 5);
}

static const xnorc_tensor tensors[] = {
    {"x", XNORC_FLOAT32, 2, {1, SIZE}, SIZE * 4, 1, 0},
    {"t", XNORC_FLOAT32, 2, {1, SIZE}, SIZE * 4, 0, 0},
    {"y", XNORC_FLOAT32, 2, {1, SIZE}, SIZE * 4, 2, 0},
    {"z\"\\\t", XNORC_INT32, 2, {1, SIZE}, SIZE * 4, 2, 1},
};
static const uint32_t inputs[] = {0}, outputs[] = {2, 3}, operands[] = {0, 1, 2, 3};
static const xnorc_step steps[] = {
    {"double", run_double, 0, 1, 1, 1},
    {"plus_one", run_plus_one, 1, 1, 2, 1},
    {"to_int", run_to_int, 2, 1, 3, 1},
};
static const xnorc_model model = {
    .abi = XNORC_ABI, .name = "fake", .arena_bytes = ARENA, .workspace_place = TENSOR, .workspace_bytes = WORKSPACE,
    .max_threads = MAX_THREADS, .n_tensors = 4, .n_inputs = 1, .n_outputs = 2, .n_steps = 3, .tensors = tensors,
    .inputs = inputs, .outputs = outputs, .operands = operands, .steps = steps,
};

const xnorc_model *fake_model(void);
const xnorc_model *fake_model(void) { return TVMFFIEnvModRegisterSystemLibSymbol("x", NULL) ? NULL : &model; }

#ifdef XNORC_RUNNER
enum { SCRATCH = ARENA + 3 * 4032 + 64 };
const xnorc_model *xnorc_this_model(void) { return fake_model(); }
_Alignas(XNORC_ARENA_ALIGN) uint8_t xnorc_this_scratch[SCRATCH];
const uint64_t xnorc_this_scratch_bytes = SCRATCH;
#endif
