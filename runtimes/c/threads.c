/* A static pool of threads for TVM's parallel loops, or the same calls on one thread.
 *
 * A launch is cut into a few tasks for each thread, and the calling thread and its workers take them one by one: a thread
 * that has the core to itself takes more, and one that does not get a core in time takes none and is not waited for.
 * Workers spin for a moment after a launch, because the next layer's launch follows soon, and then sleep on a condition.
 *
 * A worker enters a launch by adding itself to `active` and then reading `open`; the caller ends it by clearing `open` and
 * then waiting until `active` is 0. So either the worker sees that it came too late, or the caller waits for it. */
#ifndef XNORC_NO_THREADS_SUPPORT
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#endif

#include "internal.h"

static int run_serial(FTVMParallelLambda lambda, void *cdata, int num_task) {
    TVMParallelGroupEnv env = {NULL, num_task > 0 ? num_task : 1};
    uint32_t team = xnorc_i_work.team;
    xnorc_i_work.team = 1;
    int failed = 0;
    for (int task = 0; task < env.num_task; task++) failed |= lambda(task, &env, cdata) != 0;
    xnorc_i_work.team = team;
    return failed ? -1 : 0;
}

/* Tasks are taken one after the other by whoever is free: they cannot meet. No kernel of xnorc asks them to. */
int TVMBackendParallelBarrier(int task_id, TVMParallelGroupEnv *penv) {
    (void)task_id;
    return penv->num_task == 1 ? 0 : -1;
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

#else

enum { SPINS = 2000, STACK_BYTES = 256 * 1024, SHARE = 4 /* tasks for each thread, where a kernel leaves it open */ };

static struct {
    pthread_mutex_t control; /* held while the pool is resized, and by the one launch that uses it */
    pthread_mutex_t lock;    /* guards the two conditions */
    pthread_cond_t wake, done;
    pthread_t workers[XNORC_MOST_THREADS - 1];
    atomic_uint threads; /* workers + 1 */
    atomic_uint generation;
    atomic_int open, active, next, failed, exhausted, stop;
    /* What follows belongs to the open launch: it changes only while none is open and no worker is active. */
    uint32_t team;
    FTVMParallelLambda lambda;
    void *cdata;
    TVMParallelGroupEnv env;
    uint8_t *workspace;
    uint64_t workspace_size;
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

/* Run tasks of the open launch until none is left. */
static void take_tasks(void) {
    for (;;) {
        int task = atomic_fetch_add(&pool.next, 1);
        if (task >= pool.env.num_task) return;
        if (pool.lambda(task, &pool.env, pool.cdata)) atomic_store(&pool.failed, 1);
    }
}

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
        if (atomic_load(&pool.stop)) return NULL;
        atomic_fetch_add(&pool.active, 1);
        if (atomic_load(&pool.open) && index < pool.team) {
            xnorc_i_work = (xnorc_i_workspace){.base = pool.workspace + index * pool.workspace_size,
                                               .size = pool.workspace_size,
                                               .team = 1};
            take_tasks();
            if (xnorc_i_work.exhausted) atomic_store(&pool.exhausted, 1);
        }
        if (atomic_fetch_sub(&pool.active, 1) == 1 && !atomic_load(&pool.open)) {
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
    atomic_store(&pool.stop, 1);
    next_generation();
    for (uint32_t i = 0; i < workers; i++) pthread_join(pool.workers[i], NULL);
    atomic_store(&pool.stop, 0);
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
    pool.env = (TVMParallelGroupEnv){&pool, num_task > 0 ? num_task : (int)team * SHARE};
    pool.workspace = mine->base;
    pool.workspace_size = mine->size;
    atomic_store(&pool.failed, 0);
    atomic_store(&pool.exhausted, 0);
    atomic_store(&pool.next, 0);
    atomic_store(&pool.open, 1);
    next_generation();

    uint32_t before = mine->team;
    mine->team = 1;
    take_tasks();
    mine->team = before;

    atomic_store(&pool.open, 0);
    for (int spin = 0; spin < SPINS && atomic_load(&pool.active); spin++) relax();
    if (atomic_load(&pool.active)) {
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.active)) pthread_cond_wait(&pool.done, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
    }
    int result = 0;
    if (atomic_load(&pool.failed)) result = -1;
    if (atomic_load(&pool.exhausted)) mine->exhausted = 1;
    pthread_mutex_unlock(&pool.control);
    return result;
}

#endif
