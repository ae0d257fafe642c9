/* A static pool of threads for TVM's parallel loops, or the same calls on one thread.
 *
 * The calling thread is member 0 of the team and member t runs the tasks t, t + team, t + 2*team, ... Workers spin for
 * a moment after a launch, because the next layer's launch follows soon, and then sleep on a condition. */
#ifndef XNORC_NO_THREADS_SUPPORT
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>
#endif

#include "internal.h"

static int run_tasks(FTVMParallelLambda lambda, void *cdata, TVMParallelGroupEnv *env, int first, int step) {
    int failed = 0;
    for (int task = first; task < env->num_task; task += step) failed |= lambda(task, env, cdata) != 0;
    return failed ? -1 : 0;
}

static int run_serial(FTVMParallelLambda lambda, void *cdata, int num_task) {
    TVMParallelGroupEnv env = {NULL, num_task > 0 ? num_task : 1};
    uint32_t team = xnorc_i_work.team;
    xnorc_i_work.team = 1;
    int result = run_tasks(lambda, cdata, &env, 0, 1);
    xnorc_i_work.team = team;
    return result;
}

#ifdef XNORC_NO_THREADS_SUPPORT

uint32_t xnorc_i_threads(void) { return 1; }

xnorc_status xnorc_set_threads(uint32_t threads) {
    if (threads < 1) return XNORC_BAD_ARGUMENT;
    return threads == 1 ? XNORC_OK : XNORC_NO_THREADS;
}

int TVMBackendParallelLaunch(FTVMParallelLambda flambda, void *cdata, int num_task) {
    return run_serial(flambda, cdata, num_task);
}

int TVMBackendParallelBarrier(int task_id, TVMParallelGroupEnv *penv) {
    (void)task_id;
    return penv->num_task == 1 ? 0 : -1; /* the other tasks have not begun: there is nothing right to do */
}

#else

enum { SPINS = 2000, STACK_BYTES = 256 * 1024 };

static struct {
    pthread_mutex_t control; /* held while the pool is resized, and by the one launch that uses it */
    pthread_mutex_t lock;    /* guards the two conditions */
    pthread_cond_t wake, done;
    pthread_t workers[XNORC_MOST_THREADS - 1];
    atomic_uint threads; /* workers + 1 */
    atomic_uint generation, pending;
    atomic_int failed, exhausted;
    int stop;
    uint32_t team;
    FTVMParallelLambda lambda;
    void *cdata;
    TVMParallelGroupEnv env;
    uint8_t *workspace;
    uint64_t workspace_size;
    atomic_uint arrived, phase; /* of the barrier */
} pool = {.control = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER,
          .threads = 1};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

uint32_t xnorc_i_threads(void) { return atomic_load(&pool.threads); }

static void *work(void *argument) {
    uint32_t index = (uint32_t)(uintptr_t)argument;
    unsigned seen = 0; /* a new pool starts at generation 0 */
    for (;;) {
        for (int spin = 0; spin < SPINS && atomic_load(&pool.generation) == seen; spin++) relax();
        if (atomic_load(&pool.generation) == seen) {
            pthread_mutex_lock(&pool.lock);
            while (atomic_load(&pool.generation) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load(&pool.generation);
        if (pool.stop) return NULL;
        if (index < pool.team) {
            xnorc_i_work = (xnorc_i_workspace){.base = pool.workspace + index * pool.workspace_size,
                                               .size = pool.workspace_size,
                                               .team = 1};
            if (run_tasks(pool.lambda, pool.cdata, &pool.env, (int)index, (int)pool.team)) atomic_store(&pool.failed, 1);
            if (xnorc_i_work.exhausted) atomic_store(&pool.exhausted, 1);
        }
        if (atomic_fetch_sub(&pool.pending, 1) == 1) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
}

static void next_generation(void) {
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.generation, 1);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

static void stop_workers(void) {
    uint32_t workers = atomic_load(&pool.threads) - 1;
    pool.stop = 1;
    next_generation();
    for (uint32_t i = 0; i < workers; i++) pthread_join(pool.workers[i], NULL);
    pool.stop = 0;
    atomic_store(&pool.generation, 0);
    atomic_store(&pool.threads, 1);
}

static xnorc_status start_workers(uint32_t threads) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return XNORC_NO_THREADS;
    long least = sysconf(_SC_THREAD_STACK_MIN);
    pthread_attr_setstacksize(&attributes, least > STACK_BYTES ? (size_t)least : STACK_BYTES);
    int failed = 0;
    for (uint32_t i = 1; i < threads && !failed; i++) {
        failed = pthread_create(&pool.workers[i - 1], &attributes, work, (void *)(uintptr_t)i);
        if (!failed) atomic_store(&pool.threads, i + 1);
    }
    pthread_attr_destroy(&attributes);
    return failed ? XNORC_NO_THREADS : XNORC_OK;
}

xnorc_status xnorc_set_threads(uint32_t threads) {
    if (threads < 1 || threads > XNORC_MOST_THREADS) return XNORC_BAD_ARGUMENT;
    xnorc_status status = XNORC_OK;
    pthread_mutex_lock(&pool.control);
    if (threads != atomic_load(&pool.threads)) {
        stop_workers(); /* also what makes it safe to unload the library after xnorc_set_threads(1) */
        status = start_workers(threads);
        if (status != XNORC_OK) stop_workers();
    }
    pthread_mutex_unlock(&pool.control);
    return status;
}

int TVMBackendParallelLaunch(FTVMParallelLambda flambda, void *cdata, int num_task) {
    xnorc_i_workspace *mine = &xnorc_i_work;
    uint32_t team = mine->team;
    if (num_task > 0 && (uint32_t)num_task < team) team = (uint32_t)num_task;
    /* One launch at a time has the pool; one inside another, or of a second caller's thread, runs on its own thread. */
    if (team <= 1 || pthread_mutex_trylock(&pool.control)) return run_serial(flambda, cdata, num_task);
    if (team > atomic_load(&pool.threads)) team = atomic_load(&pool.threads);
    pool.team = team;
    pool.lambda = flambda;
    pool.cdata = cdata;
    pool.env = (TVMParallelGroupEnv){&pool, num_task > 0 ? num_task : (int)team};
    pool.workspace = mine->base;
    pool.workspace_size = mine->size;
    atomic_store(&pool.failed, 0);
    atomic_store(&pool.exhausted, 0);
    atomic_store(&pool.arrived, 0);
    atomic_store(&pool.pending, atomic_load(&pool.threads) - 1);
    next_generation();

    uint32_t before = mine->team;
    mine->team = 1;
    int result = run_tasks(flambda, cdata, &pool.env, 0, (int)team);
    mine->team = before;

    for (int spin = 0; spin < SPINS && atomic_load(&pool.pending); spin++) relax();
    if (atomic_load(&pool.pending)) {
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.pending)) pthread_cond_wait(&pool.done, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
    }
    if (atomic_load(&pool.failed)) result = -1;
    if (atomic_load(&pool.exhausted)) mine->exhausted = 1;
    pthread_mutex_unlock(&pool.control);
    return result;
}

int TVMBackendParallelBarrier(int task_id, TVMParallelGroupEnv *penv) {
    (void)task_id;
    if (penv->num_task == 1) return 0;
    /* Tasks that share a thread run one after the other: they cannot meet. */
    if (penv->sync_handle != &pool || (uint32_t)penv->num_task > pool.team) return -1;
    unsigned phase = atomic_load(&pool.phase);
    if (atomic_fetch_add(&pool.arrived, 1) + 1 == (unsigned)penv->num_task) {
        atomic_store(&pool.arrived, 0);
        atomic_fetch_add(&pool.phase, 1);
        return 0;
    }
    for (int spin = 0; atomic_load(&pool.phase) == phase; spin++) {
        if (spin < SPINS) relax();
        else sched_yield();
    }
    return 0;
}

#endif
