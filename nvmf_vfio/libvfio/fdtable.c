/* SPDX-License-Identifier: BSD-3-Clause */
#include "fdtable.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/types.h>
#include <unistd.h>

_Atomic(struct lv_file *) lv_fdtable[LV_FD_MAX];

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static _Atomic(pid_t) owner;    /* the process whose descriptors these are */

static void
forget_all(void)
{
    for (int fd = 0; fd < LV_FD_MAX; fd++) {
        if (lv_trapped(fd)) {
            atomic_store(&lv_fdtable[fd], NULL);
        }
    }
}

static void
watch_fork(void)
{
    (void)pthread_atfork(NULL, NULL, forget_all);
}

void
lv_file_init(struct lv_file *file, enum lv_kind kind,
             void (*release)(struct lv_file *))
{
    *file = (struct lv_file){ kind, 1, release };
}

int
lv_fdtable_install(struct lv_file *file)
{
    int fd;

    pthread_once(&fork_once, watch_fork);
    fd = eventfd(0, EFD_CLOEXEC);
    if (fd >= LV_FD_MAX) {
        close(fd);
        errno = EMFILE;
        return -1;
    }
    if (fd != -1) {
        lv_file_hold(file);
        atomic_store(&owner, getpid());
        atomic_store_explicit(&lv_fdtable[fd], file, memory_order_release);
    }
    return fd;
}

struct lv_file *
lv_file_get(int fd)
{
    struct lv_file *file;

    if (!lv_trapped(fd)) {
        return NULL;
    }
    pthread_mutex_lock(&table_lock);
    file = atomic_load(&lv_fdtable[fd]);
    if (file != NULL) {
        file->references++;
    }
    pthread_mutex_unlock(&table_lock);
    return file;
}

struct lv_file *
lv_file_get_kind(int fd, enum lv_kind kind)
{
    struct lv_file *file = lv_file_get(fd);

    if (file != NULL && file->kind != kind) {
        lv_file_put(file);
        return NULL;
    }
    return file;
}

void
lv_file_hold(struct lv_file *file)
{
    pthread_mutex_lock(&table_lock);
    file->references++;
    pthread_mutex_unlock(&table_lock);
}

void
lv_file_put(struct lv_file *file)
{
    int left;

    pthread_mutex_lock(&table_lock);
    left = --file->references;
    pthread_mutex_unlock(&table_lock);
    if (left == 0) {
        file->release(file);
    }
}

void
lv_fdtable_duplicate(int original, int fd)
{
    struct lv_file *file;

    if ((!lv_trapped(original) && !lv_trapped(fd)) || getpid() != atomic_load(&owner)) {
        return;
    }
    file = lv_file_get(original);
    if ((unsigned int)fd < LV_FD_MAX && (file != NULL || lv_trapped(fd))) {
        file = atomic_exchange(&lv_fdtable[fd], file);
    }
    /* What fd was before, or what the table has no room for. */
    if (file != NULL) {
        lv_file_put(file);
    }
}

void
lv_fdtable_remove(int fd)
{
    struct lv_file *file;

    /* A child of vfork() has this memory, but descriptors of its own. */
    if (!lv_trapped(fd) || getpid() != atomic_load(&owner)) {
        return;
    }
    pthread_mutex_lock(&table_lock);
    file = atomic_exchange(&lv_fdtable[fd], NULL);
    pthread_mutex_unlock(&table_lock);
    if (file != NULL) {
        lv_file_put(file);
    }
}
