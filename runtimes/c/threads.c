/* A static pool of threads for TVM's parallel loops, or the same calls on one thread.
 *
 * Before a loop a kernel says how many tasks it has (xnorc_tasks). Every thread of the team owns an equal run of
 * neighbouring tasks and takes them from the front, the same part of every layer: what it wrote in one layer lies in its
 * own cache in the next. Who is through with its own takes tasks of others from the back: a thread that has the core to
 * itself takes more, and one that does not get a core in time takes none and is not waited for.
 *
 * Workers spin for a moment after a launch, because the next layer's launch follows soon, and then sleep on a condition;
 * a run wakes them before its first layer. They do not spin where there are more threads than processors.
 *
 * A worker enters a launch by adding itself to `active` and then reading `open`; the caller ends it by clearing `open` and
 * then waiting until `active` is 0. So either the worker sees that it came too late, or the caller waits for it. It sleeps
 * by adding itself to `sleeping` and then reading `generation`; who changes `generation` then reads `sleeping`. */
#ifndef XNORC_NO_THREADS_SUPPORT
#if defined(__linux__)
#define _GNU_SOURCE /* sched_getaffinity */
#else
#define _POSIX_C_SOURCE 200809L
#endif
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>
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

/* The extent of the parallel loop that this thread launches next: TVM asks for 0 tasks, "as many as you like". */
int xnorc_tasks(int count) {
    xnorc_i_work.tasks = count;
    return 0;
}

#ifdef XNORC_NO_THREADS_SUPPORT

void xnorc_i_wake(void) {}

uint32_t xnorc_i_threads(void) { return 1; }

xnorc_status xnorc_set_threads(uint32_t threads) {
    if (threads < 1) return XNORC_BAD_ARGUMENT;
    return threads == 1 ? XNORC_OK : XNORC_NO_THREADS;
}

int TVMBackendParallelLaunch(FTVMParallelLambda flambda, void *cdata, int num_task) {
    return run_serial(flambda, cdata, num_task);
}

#else

enum {
    SPIN_NS = 100000,        /* for how long a worker waits awake for the next launch: about what waking it takes, twice */
    JOIN_NS = 50000,         /* for how long the caller waits awake for tasks that others still run */
    SPINS = 64,              /* between two looks at the clock */
    STACK_BYTES = 256 * 1024,
    SHARE = 32               /* most tasks for each thread: more loop iterations than that are joined */
};

/* Tasks that a thread owns: the first and the one behind the last, 16 bits each. A cache line of its own. */
typedef struct {
    _Alignas(64) atomic_uint run;
} share;

static share shares[XNORC_MOST_THREADS]; /* of the open launch, by thread */

static struct {
    pthread_mutex_t control; /* held while the pool is resized, and by the one launch that uses it */
    pthread_mutex_t lock;    /* guards the two conditions */
    pthread_cond_t wake, done;
    pthread_t workers[XNORC_MOST_THREADS - 1];
    atomic_uint started; /* workers */
    atomic_int may_spin; /* every thread can have a processor of its own */
    _Alignas(64) atomic_uint generation; /* what spinning workers read lies apart from what working ones write */
    atomic_int open, stop;
    /* What follows belongs to the open launch: it changes only while none is open and no worker is active. */
    uint32_t team;
    FTVMParallelLambda lambda;
    void *cdata;
    TVMParallelGroupEnv env;
    uint8_t *workspace;
    uint64_t workspace_size;
    _Alignas(64) atomic_uint active;
    atomic_int sleeping, failed, exhausted;
} pool = {.control = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

uint32_t xnorc_i_threads(void) { return atomic_load(&pool.started) + 1; }

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Wait awake for so long at most while a value stays as it is. */
static void spin_while(const atomic_uint *value, unsigned is, uint64_t most) {
    if (!atomic_load(&pool.may_spin)) return;
    for (uint64_t begin = nanoseconds(); nanoseconds() - begin < most;)
        for (int spin = 0; spin < SPINS; spin++) {
            if (atomic_load_explicit(value, memory_order_acquire) != is) return;
            relax();
        }
}

/* Take a task from a run: its first, or its last. -1 where none is left. */
static int take(atomic_uint *run, int last) {
    unsigned seen = atomic_load_explicit(run, memory_order_relaxed), rest;
    int task;
    do {
        unsigned from = seen & 0xffff, to = seen >> 16;
        if (from >= to) return -1;
        task = (int)(last ? to - 1 : from);
        rest = last ? (to - 1) << 16 | from : to << 16 | (from + 1);
    } while (!atomic_compare_exchange_weak(run, &seen, rest));
    return task;
}

/* Run tasks of the open launch until none is left: one's own, then those of the threads that come next. */
static void take_tasks(uint32_t index) {
    for (uint32_t i = 0; i < pool.team; i++) {
        uint32_t owner = index + i < pool.team ? index + i : index + i - pool.team;
        for (int task; (task = take(&shares[owner].run, i > 0)) >= 0;)
            if (pool.lambda(task, &pool.env, pool.cdata)) atomic_store(&pool.failed, 1);
    }
}

static void *work(void *argument) {
    uint32_t index = (uint32_t)(uintptr_t)argument;
    unsigned seen = 0; /* a new pool starts at generation 0 */
    for (;;) {
        spin_while(&pool.generation, seen, SPIN_NS);
        if (atomic_load(&pool.generation) == seen) {
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleeping, 1);
            while (atomic_load(&pool.generation) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load(&pool.generation);
        if (atomic_load(&pool.stop)) return NULL;
        atomic_fetch_add(&pool.active, 1);
        if (atomic_load(&pool.open) && index < pool.team) {
            xnorc_i_work = (xnorc_i_workspace){.base = pool.workspace + index * pool.workspace_size,
                                               .size = pool.workspace_size,
                                               .team = 1};
            take_tasks(index);
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
    atomic_fetch_add(&pool.generation, 1);
    if (!atomic_load(&pool.sleeping)) return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

void xnorc_i_wake(void) {
    if (atomic_load(&pool.sleeping) && atomic_load(&pool.may_spin)) next_generation();
}

/* Processors that this process may use; 0 where nobody says. */
static long processors(void) {
#if defined(__linux__)
    cpu_set_t mine;
    CPU_ZERO(&mine);
    if (!sched_getaffinity(0, sizeof mine, &mine)) {
        long count = 0;
        for (int i = 0; i < CPU_SETSIZE; i++) count += CPU_ISSET(i, &mine) != 0;
        return count;
    }
#endif
    return sysconf(_SC_NPROCESSORS_ONLN);
}

static void stop_workers(void) {
    uint32_t workers = atomic_load(&pool.started);
    atomic_store(&pool.stop, 1);
    next_generation();
    for (uint32_t i = 0; i < workers; i++) pthread_join(pool.workers[i], NULL);
    atomic_store(&pool.stop, 0);
    atomic_store(&pool.generation, 0);
    atomic_store(&pool.started, 0);
}

static xnorc_status start_workers(uint32_t threads) {
    atomic_store(&pool.may_spin, (long)threads <= processors());
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return XNORC_NO_THREADS;
    long least = sysconf(_SC_THREAD_STACK_MIN);
    pthread_attr_setstacksize(&attributes, least > STACK_BYTES ? (size_t)least : STACK_BYTES);
    int failed = 0;
    for (uint32_t i = 1; i < threads && !failed; i++) {
        failed = pthread_create(&pool.workers[i - 1], &attributes, work, (void *)(uintptr_t)i);
        if (!failed) atomic_store(&pool.started, i);
    }
    pthread_attr_destroy(&attributes);
    return failed ? XNORC_NO_THREADS : XNORC_OK;
}

xnorc_status xnorc_set_threads(uint32_t threads) {
    if (threads < 1 || threads > XNORC_MOST_THREADS) return XNORC_BAD_ARGUMENT;
    xnorc_status status = XNORC_OK;
    pthread_mutex_lock(&pool.control);
    if (threads != xnorc_i_threads()) {
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
    int extent = mine->tasks;
    mine->tasks = 0;
    if (num_task > 0 && (uint32_t)num_task < team) team = (uint32_t)num_task;
    /* One launch at a time has the pool; one inside another, or of a second caller's thread, runs on its own thread. */
    if (team <= 1 || num_task > 0xffff || pthread_mutex_trylock(&pool.control)) return run_serial(flambda, cdata, num_task);
    if (team > xnorc_i_threads()) team = xnorc_i_threads();
    if (num_task <= 0) {
        int most = (int)team * SHARE;
        num_task = most;
        if (extent > 0) { /* TVM gives every task extent / num_task iterations, rounded up: as many tasks as have any */
            int each = (extent - 1) / most + 1;
            num_task = (extent - 1) / each + 1;
        }
    }
    pool.team = team;
    pool.lambda = flambda;
    pool.cdata = cdata;
    pool.env = (TVMParallelGroupEnv){&pool, num_task};
    pool.workspace = mine->base;
    pool.workspace_size = mine->size;
    for (uint32_t i = 0; i < team; i++) {
        uint32_t from = (uint32_t)num_task * i / team, to = (uint32_t)num_task * (i + 1) / team;
        atomic_store_explicit(&shares[i].run, to << 16 | from, memory_order_relaxed);
    }
    atomic_store(&pool.failed, 0);
    atomic_store(&pool.exhausted, 0);
    atomic_store(&pool.open, 1);
    next_generation();

    uint32_t before = mine->team;
    mine->team = 1;
    take_tasks(0);
    mine->team = before;

    atomic_store(&pool.open, 0);
    for (unsigned active; (active = atomic_load(&pool.active)) != 0;) {
        spin_while(&pool.active, active, JOIN_NS);
        if (atomic_load(&pool.active) != active) continue;
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
