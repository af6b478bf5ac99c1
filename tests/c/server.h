/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A vfio-user server for tests: a thread behind a UNIX socket that speaks the
 * protocol with code of its own (nothing of libvfio's but the layout), serves a
 * small PCI device, remembers what it was asked, and misbehaves when told to.
 *
 * The device: BAR0 of 64 KiB with a mappable second half (memory), BAR1 of 256
 * bytes (I/O), configuration space of 4 KiB, one INTx, 16 MSI and 16 MSI-X vectors.
 */
#ifndef TEST_SERVER_H
#define TEST_SERVER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

#define SERVER_BAR0_SIZE    0x10000u
#define SERVER_CONFIG_SIZE  0x1000u
#define SERVER_MSIX         16u
#define SERVER_MAX_MAPS     64

enum server_fault {
    FAULT_NONE,
    FAULT_SILENT,           /* reads, and never answers */
    FAULT_HANG_UP,          /* closes instead of answering */
    FAULT_GARBAGE,          /* answers with a header of senseless size */
    FAULT_SPLIT,            /* answers byte by byte */
    FAULT_ERROR,            /* answers with an error, EPERM */
    FAULT_ERROR_ZERO,       /* answers with an error, but no errno */
    FAULT_SHORT,            /* answers with too little payload */
    FAULT_REVERSED,         /* answers two commands in reverse order */
    FAULT_ASKS_FIRST,       /* reads guest memory before it answers */
    FAULT_ASKS_ONLY,        /* reads guest memory all the time, never answers */
    FAULT_BAD_CAPS,         /* region capabilities that point outside */
};

struct server_map {
    uint64_t address, size, offset;
    uint32_t flags;
    int fd;
};

struct server {
    char path[96];
    int listener;
    int connection;             /* the latest one */
    int commands;               /* our end of the twin socket, or -1 */
    pthread_t thread;
    bool twin;                  /* offer a twin socket */
    bool twin_is_file;          /* … and send something else */
    const char *version_json;   /* instead of the usual one */
    uint16_t major;
    enum server_fault fault;    /* applies to fault_command only */
    uint16_t fault_command;
    unsigned int fault_after;   /* so many of it are answered well before */
    uint64_t ask_address;       /* for FAULT_ASKS_FIRST */
    uint8_t asked[16];

    pthread_mutex_t lock;       /* everything below */
    pthread_cond_t changed;
    unsigned int connections;
    unsigned int seen[32];      /* commands, by number */
    unsigned int unanswered;    /* those with NO_REPLY */
    struct server_map maps[SERVER_MAX_MAPS];
    unsigned int nr_maps;
    uint8_t config[SERVER_CONFIG_SIZE];
    uint8_t bar0[SERVER_BAR0_SIZE];
    int bar0_fd;                /* its mappable half */
    int vectors[SERVER_MSIX];   /* eventfds, or -1 */
    int msi_vectors[SERVER_MSIX];
    int error_irqs;             /* how many ERR interrupts it says it has */
    int request_irqs;           /* how many REQ interrupts it says it has */
    unsigned int resets;

    bool migratable;            /* answers DEVICE_FEATURE and MIG_DATA_* */
    bool plain;                 /* as libvfio-user does: PRE_COPY, no P2P, no size */
    uint32_t state;             /* VFIO_DEVICE_STATE_* */
    uint64_t logged[2];         /* the first range of DMA_LOGGING_START */
    uint64_t dirty;             /* the page that a report has set, once */
    char saved[100000];         /* its state, and how much of it was read */
    size_t nr_saved;
    char restored[100000];      /* what was written */
    size_t nr_restored;
    size_t refuse_after;        /* so much is taken, and then EINVAL */
};

/* Starts a server at a fresh path. Change its fields before connecting. */
struct server *
server_start(void);

/* Ends connection and thread, removes the socket, frees. */
void
server_stop(struct server *server);

/* From now on all servers send some replies damaged; seed 0: no more. */
void
server_damage(unsigned int seed);

/* Ends the connection as a killed server does. */
void
server_drop(struct server *server);

/* Waits until the server has seen command n times. Returns false after 5 s. */
bool
server_wait_seen(struct server *server, enum vu_command command, unsigned int n);

/*
 * Sends a DMA command on the twin socket and waits for the reply. Returns the
 * errno in it.
 */
int
server_dma(struct server *server, enum vu_command command, uint64_t address,
           void *data, size_t size);

#endif /* TEST_SERVER_H */
