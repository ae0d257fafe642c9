/* A QEMU TCG plugin that counts how often every translated block of a guest program runs, phase by phase.
 *
 * The runner reads the clock before and after every step in its mode `bench`; user-mode QEMU passes that on as a system
 * call, which ends a phase here. Phase 0 is what comes before the first reading, phase 2i+1 is step i. A block is a piece
 * of straight-line code that QEMU translates as one: when it starts it runs to its end, so counting starts is exact.
 *
 * Arguments: out=FILE, clock=N[:N] (numbers of the system calls that read the clock). FILE gets lines of text:
 *     block INDEX ADDRESS INSTRUCTIONS BYTES
 *     phase NUMBER
 *     count INDEX STARTS         (blocks that ran in the phase)
 *     end PHASES
 * The interface of plugins is declared here as its documentation gives it (QEMU, "TCG Plugins"). One vCPU: the runner is
 * started with one thread. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef PLUGIN_VERSION
#define PLUGIN_VERSION 1
#endif

typedef uint64_t plugin_id;
typedef void (*translated)(plugin_id, void *block);
typedef void (*executed)(unsigned cpu, void *data);
typedef void (*called)(plugin_id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                       uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, translated);
extern void qemu_plugin_register_vcpu_tb_exec_cb(void *block, executed, int flags, void *data);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, called);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const void *block);
extern uint64_t qemu_plugin_tb_vaddr(const void *block);
extern void *qemu_plugin_tb_get_insn(const void *block, size_t index);
extern size_t qemu_plugin_insn_size(const void *instruction);
extern uint64_t qemu_plugin_insn_vaddr(const void *instruction);

__attribute__((visibility("default"))) int qemu_plugin_version = PLUGIN_VERSION;

typedef struct counter {
    uint64_t starts;
    uint64_t index;
    struct counter *next;
    bool listed;
} counter;

static FILE *out;
static long clocks[2];
static uint64_t blocks, phase;
static counter *ran; /* blocks that ran in this phase */

static void on_run(unsigned cpu, void *data) {
    (void)cpu;
    counter *one = data;
    one->starts++;
    if (!one->listed) {
        one->listed = true;
        one->next = ran;
        ran = one;
    }
}

static void on_translation(plugin_id id, void *block) {
    (void)id;
    counter *one = calloc(1, sizeof *one);
    size_t n = qemu_plugin_tb_n_insns(block);
    if (!one || !n) {
        fprintf(stderr, "count: no memory, or an empty block\n");
        exit(3);
    }
    void *last = qemu_plugin_tb_get_insn(block, n - 1);
    uint64_t start = qemu_plugin_tb_vaddr(block);
    uint64_t bytes = qemu_plugin_insn_vaddr(last) + qemu_plugin_insn_size(last) - start;
    one->index = blocks++;
    fprintf(out, "block %" PRIu64 " %" PRIu64 " %zu %" PRIu64 "\n", one->index, start, n, bytes);
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_run, 0, one);
}

static void end_phase(void) {
    fprintf(out, "phase %" PRIu64 "\n", phase++);
    while (ran) {
        fprintf(out, "count %" PRIu64 " %" PRIu64 "\n", ran->index, ran->starts);
        ran->starts = 0;
        ran->listed = false;
        ran = ran->next;
    }
}

static void on_call(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                    uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)cpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == clocks[0] || number == clocks[1]) end_phase();
}

static void at_exit(plugin_id id, void *data) {
    (void)id, (void)data;
    end_phase();
    fprintf(out, "end %" PRIu64 "\n", phase);
    if (fclose(out)) fprintf(stderr, "count: cannot write the counts\n");
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
        if (!strncmp(argv[i], "clock=", 6)) {
            char *rest;
            clocks[0] = clocks[1] = strtol(argv[i] + 6, &rest, 10);
            if (*rest == ':') clocks[1] = strtol(rest + 1, NULL, 10);
        }
    }
    if (!out) {
        fprintf(stderr, "count: out=FILE is missing or cannot be written\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_call);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}
