/* A QEMU TCG plugin that counts how often every translated block of a guest program runs, phase by phase.
 *
 * The runner reads the clock before and after every step in its mode `bench`; user-mode QEMU passes that on as a system
 * call, which ends a phase here. Phase 0 is what comes before the first reading, phase 2i+1 is step i. A block is a piece
 * of straight-line code that QEMU translates as one: when it starts it runs to its end, so counting starts is exact.
 *
 * Arguments: out=FILE, clock=N[:N] (numbers of the system calls that read the clock), samples=FILE (optional). The last
 * holds their number and lines `PHASE START INSTRUCTIONS`, in order: from block start number START of that phase on, write down the blocks
 * that run until they have so many instructions. `out` gets lines of text:
 *     block INDEX ADDRESS INSTRUCTIONS BYTES
 *     sample NUMBER INDEX...     (a sampled stretch of the execution)
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
    uint64_t instructions;
    struct counter *next;
    bool listed;
} counter;

static FILE *out;
static long clocks[2];
static uint64_t blocks, phase;
static counter *ran; /* blocks that ran in this phase */
static struct {
    uint64_t phase, start, instructions;
} *samples;
static uint64_t n_samples, sample, position; /* the next sample, and how many blocks started in this phase */
static uint64_t left;                        /* instructions that the sample being taken still lacks */
static uint64_t *taken, n_taken, room;       /* its blocks so far: blocks that are new meanwhile have lines of their own */

static void write_sample(void) {
    fprintf(out, "sample %" PRIu64, sample++);
    for (uint64_t i = 0; i < n_taken; i++) fprintf(out, " %" PRIu64, taken[i]);
    fprintf(out, "\n");
    left = n_taken = 0;
}

static void take(const counter *one) {
    if (!left && sample < n_samples && samples[sample].phase == phase && samples[sample].start <= position)
        left = samples[sample].instructions;
    position++;
    if (!left) return;
    if (n_taken == room) {
        room = room ? 2 * room : 1024;
        taken = realloc(taken, room * sizeof *taken);
        if (!taken) {
            fprintf(stderr, "count: no memory\n");
            exit(3);
        }
    }
    taken[n_taken++] = one->index;
    left = left > one->instructions ? left - one->instructions : 0;
    if (!left) write_sample();
}

static void on_run(unsigned cpu, void *data) {
    (void)cpu;
    counter *one = data;
    one->starts++;
    if (!one->listed) {
        one->listed = true;
        one->next = ran;
        ran = one;
    }
    if (n_samples) take(one);
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
    one->instructions = n;
    fprintf(out, "block %" PRIu64 " %" PRIu64 " %zu %" PRIu64 "\n", one->index, start, n, bytes);
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_run, 0, one);
}

static void end_phase(void) {
    if (left) write_sample();
    position = 0;
    while (sample < n_samples && samples[sample].phase <= phase) sample++;
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

static int read_samples(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%" SCNu64, &n_samples) != 1 || n_samples > 1000000) return -1;
    samples = calloc(n_samples ? n_samples : 1, sizeof *samples);
    if (!samples) return -1;
    for (uint64_t i = 0; i < n_samples; i++)
        if (fscanf(file, "%" SCNu64 "%" SCNu64 "%" SCNu64, &samples[i].phase, &samples[i].start,
                   &samples[i].instructions) != 3)
            return -1;
    return fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
        if (!strncmp(argv[i], "samples=", 8) && read_samples(argv[i] + 8)) {
            fprintf(stderr, "count: samples=FILE cannot be read\n");
            return -1;
        }
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
