/*
 * A TCG plugin that counts the guest's instructions, each address by itself, until one address is reached.
 *
 * Arguments: counts=PATH, which must exist and be writable, and stop=ADDRESS, hexadecimal. The count is written when the
 * instruction at ADDRESS is about to be executed for the first time; QEMU ends then. If QEMU ends before, nothing is
 * written.
 *
 * The file is text: "total N" and then "ADDRESS FIRST COUNT" for each address of the guest in hexadecimal, decimal and
 * decimal: FIRST is how many instructions had been executed before the first one at this address. Under -icount one thread
 * runs all virtual processors, so nothing is locked.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin-api.h"

/* What QEMU must support. The bench names it when it compiles this file: each QEMU accepts a range. */
EXPORTED int qemu_plugin_version = PLUGIN_API;

struct counter {
    uint64_t address;
    uint64_t first;
    uint64_t count;
    struct counter *next;
};

#define BUCKETS (1u << 17)

static struct counter *buckets[BUCKETS];
static uint64_t total;
static uint64_t stop_at;
static FILE *output;

static void die(const char *reason)
{
    fprintf(stderr, "icount plugin: %s\n", reason);
    _exit(1);
}

/* Code is translated again and again; its counters stay. */
static struct counter *counter_of(uint64_t address)
{
    struct counter **bucket = &buckets[(address ^ address >> 17) % BUCKETS];
    for (struct counter *c = *bucket; c; c = c->next) {
        if (c->address == address) {
            return c;
        }
    }
    struct counter *c = calloc(1, sizeof(*c));
    if (!c) {
        die("out of memory");
    }
    c->address = address;
    c->next = *bucket;
    *bucket = c;
    return c;
}

static void on_instruction(unsigned int cpu, void *data)
{
    struct counter *c = data;
    (void)cpu;
    if (!c->count++) {
        c->first = total;
    }
    total++;
}

static void on_stop(unsigned int cpu, void *data)
{
    (void)cpu;
    (void)data;
    fprintf(output, "total %llu\n", (unsigned long long)total);
    for (unsigned int i = 0; i < BUCKETS; i++) {
        for (struct counter *c = buckets[i]; c; c = c->next) {
            fprintf(output, "%llx %llu %llu\n", (unsigned long long)c->address, (unsigned long long)c->first,
                    (unsigned long long)c->count);
        }
    }
    if (fclose(output)) {
        die("the counts could not be written");
    }
    _exit(0);
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    size_t length = qemu_plugin_tb_n_insns(block);
    (void)id;
    for (size_t i = 0; i < length; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        uint64_t address = qemu_plugin_insn_vaddr(instruction);
        qemu_plugin_vcpu_udata_cb_t callback = address == stop_at ? on_stop : on_instruction;
        qemu_plugin_register_vcpu_insn_exec_cb(instruction, callback, QEMU_PLUGIN_CB_NO_REGS, counter_of(address));
    }
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    const char *file = NULL;
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "counts=", 7)) {
            file = argv[i] + 7;
        } else if (!strncmp(argv[i], "stop=", 5)) {
            stop_at = strtoull(argv[i] + 5, NULL, 16);
        }
    }
    if (!file || !stop_at) {
        die("counts= and stop= are needed");
    }
    output = fopen(file, "r+");
    if (!output) {
        die("the file for the counts cannot be opened");
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    return 0;
}
