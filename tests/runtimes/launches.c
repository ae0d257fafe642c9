/* Loops of many sizes on pools of many sizes: every iteration runs once, in the tasks that TVM's code makes of a loop. */
#include <stdatomic.h>
#include <stdio.h>

#include "internal.h"

enum { MOST = 300 };

typedef struct {
    int extent, tasks;
    atomic_int done[MOST], empty;
} loop;

static int iterations(int task, TVMParallelGroupEnv *env, void *data) {
    loop *of = data;
    int each = (of->extent + env->num_task - 1) / env->num_task, first = task * each;
    if (first >= of->extent) atomic_fetch_add(&of->empty, 1);
    for (int i = first; i < first + each && i < of->extent; i++) atomic_fetch_add(&of->done[i], 1);
    if (task == 0) of->tasks = env->num_task;
    return 0;
}

int main(void) {
    static loop of;
    for (int threads = 1; threads <= 8; threads++) {
        if (xnorc_set_threads((uint32_t)threads) != XNORC_OK) return 1;
        xnorc_i_work.team = (uint32_t)threads;
        xnorc_i_wake();
        for (int round = 0; round < 3; round++)
            for (of.extent = 1; of.extent <= MOST; of.extent++) {
                of.empty = 0;
                for (int i = 0; i < MOST; i++) of.done[i] = 0;
                if (round < 2) xnorc_tasks(of.extent); /* the last round: nobody says how many */
                if (TVMBackendParallelLaunch(iterations, &of, 0)) return 2;
                for (int i = 0; i < MOST; i++)
                    if (of.done[i] != (i < of.extent)) return 3;
                if (round < 2 && of.empty) return 4;
                if (round < 2 && threads > 1 && of.extent <= 64 && of.tasks != of.extent) return 5;
            }
    }
    puts("every iteration once");
    return xnorc_set_threads(1) == XNORC_OK ? 0 : 6;
}
