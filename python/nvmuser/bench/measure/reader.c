/*
 * Runs in a guest that moves (nvmuser.bench.measure.migrant): holds patterns in memory into which a disk
 * reads, by direct I/O, again and again. What a read has left in a buffer is compared when its turn comes
 * again: until then nobody but the device has touched these pages, so that only its log can have brought
 * them along.
 *
 *     reader DEVICE write         fill the beginning of the disk with a pattern of its own in each block
 *     reader DEVICE read STOP     read until the file STOP is there, then print how many pages are wrong
 */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCK       (64u << 10)
#define PAGE        4096u
#define BLOCKS      256u            /* of the disk: 16 MiB */
#define SLOTS       192u            /* in memory: 12 MiB */
#define PAUSE_US    3000

static uint64_t
pattern(unsigned block, unsigned word)
{
    return ((uint64_t)(block + 1) << 32 | word) * UINT64_C(0x9e3779b97f4a7c15);
}

static unsigned
wrong_pages(const uint64_t *data, int block)
{
    unsigned word, page, wrong = 0;

    for (page = 0; block >= 0 && page < BLOCK / PAGE; page++) {
        for (word = page * (PAGE / 8); word < (page + 1) * (PAGE / 8); word++) {
            if (data[word] != pattern((unsigned)block, word)) {
                wrong++;
                break;
            }
        }
    }
    return wrong;
}

static void
fill(int fd, uint64_t *data)
{
    for (unsigned block = 0; block < BLOCKS; block++) {
        for (unsigned word = 0; word < BLOCK / 8; word++) {
            data[word] = pattern(block, word);
        }
        if (pwrite(fd, data, BLOCK, (off_t)block * BLOCK) != BLOCK) {
            err(EXIT_FAILURE, "write");
        }
    }
    if (fsync(fd) != 0) {
        err(EXIT_FAILURE, "fsync");
    }
}

static unsigned
read_until(int fd, char *memory, const char *stop)
{
    int held[SLOTS];
    unsigned wrong = 0, slot = 0;

    memset(held, -1, sizeof(held));
    while (access(stop, F_OK) != 0) {
        char *data = memory + (size_t)slot * BLOCK;
        unsigned block = (unsigned)rand() % BLOCKS;

        wrong += wrong_pages((uint64_t *)data, held[slot]);
        if (pread(fd, data, BLOCK, (off_t)block * BLOCK) != BLOCK) {
            err(EXIT_FAILURE, "read");
        }
        held[slot] = (int)block;
        slot = (slot + 1) % SLOTS;
        usleep(PAUSE_US);
    }
    for (slot = 0; slot < SLOTS; slot++) {
        wrong += wrong_pages((uint64_t *)(memory + (size_t)slot * BLOCK), held[slot]);
    }
    return wrong;
}

int
main(int argc, char **argv)
{
    int fd = argc < 3 ? -1 : open(argv[1], O_RDWR | O_DIRECT);
    char *memory = mmap(NULL, (size_t)SLOTS * BLOCK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);

    if (fd == -1 || memory == MAP_FAILED) {
        err(EXIT_FAILURE, "%s", argc < 3 ? "usage" : argv[1]);
    }
    if (argc == 3) {
        fill(fd, (uint64_t *)memory);
    } else {
        printf("%u\n", read_until(fd, memory, argv[3]));
    }
    return EXIT_SUCCESS;
}
