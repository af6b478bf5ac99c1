/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The descriptors that are ours. A container, group or device *file* has a real
 * descriptor (an idle eventfd), so that its number is nobody else's, close() is
 * the kernel's, and a call that escapes the traps fails instead of doing
 * something else. The table maps that number to the object.
 *
 * Lookups of other descriptors cost one load: lv_trapped(), and take no lock, so
 * that a child of fork() may close descriptors whatever its parent's threads
 * held. Objects are counted: lv_file_get() lends one, and a close() in another
 * thread frees it only after lv_file_put(). In a child of fork() nothing is
 * trapped: the connections belong to the parent, and the child can only close
 * its copies; one of vfork(), which has the parent's table, cannot change it.
 */
#ifndef LV_FDTABLE_H
#define LV_FDTABLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define LV_FD_MAX 65536

/* LV_INCOMING: what takes the state of a device that is restored. */
enum lv_kind { LV_CONTAINER, LV_GROUP, LV_DEVICE, LV_INCOMING };

struct lv_file {
    enum lv_kind kind;
    int references;                         /* under the table's lock */
    void (*release)(struct lv_file *file);  /* at the last reference */
};

extern _Atomic(struct lv_file *) lv_fdtable[LV_FD_MAX];

static inline bool
lv_trapped(int fd)
{
    return (unsigned int)fd < LV_FD_MAX &&
           atomic_load_explicit(&lv_fdtable[fd], memory_order_acquire) != NULL;
}

/* A new object has one reference: its creator's. */
void
lv_file_init(struct lv_file *file, enum lv_kind kind,
             void (*release)(struct lv_file *));

/*
 * Gives file a descriptor, which holds a reference. Returns it, or -1 with errno
 * (EMFILE also beyond LV_FD_MAX).
 */
int
lv_fdtable_install(struct lv_file *file);

/* The object behind fd with a reference, or NULL. */
struct lv_file *
lv_file_get(int fd);

/* As above, or NULL if it is not of this kind. */
struct lv_file *
lv_file_get_kind(int fd, enum lv_kind kind);

void
lv_file_hold(struct lv_file *file);

void
lv_file_put(struct lv_file *file);

/* fd is a duplicate of original now, of whatever kind that is, and was closed. */
void
lv_fdtable_duplicate(int original, int fd);

/*
 * Forgets fd and drops its reference; the caller closes the descriptor first or
 * afterwards. Does nothing for other descriptors.
 */
void
lv_fdtable_remove(int fd);

#endif /* LV_FDTABLE_H */
