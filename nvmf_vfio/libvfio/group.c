/* SPDX-License-Identifier: BSD-3-Clause */
#include "vfio.h"

#include <errno.h>
#include <stdlib.h>

#include "log.h"

/* Groups in use, so that a second open() is EBUSY as in the kernel. */
struct slot {
    int number;
    struct lv_group *group;     /* NULL while it connects */
    struct slot *next;
};

static struct slot *slots;      /* lv_topology */

static bool
reserve(int number)
{
    struct slot *s, *fresh = malloc(sizeof(*fresh));

    if (fresh == NULL) {
        return false;
    }
    pthread_mutex_lock(&lv_topology);
    for (s = slots; s != NULL && s->number != number; s = s->next) {
    }
    if (s == NULL) {
        *fresh = (struct slot){ number, NULL, slots };
        slots = fresh;
    }
    pthread_mutex_unlock(&lv_topology);
    if (s != NULL) {
        free(fresh);
        errno = EBUSY;
        return false;
    }
    return true;
}

static void
unreserve(int number)
{
    struct slot **link = &slots, *found;

    pthread_mutex_lock(&lv_topology);
    while ((*link)->number != number) {
        link = &(*link)->next;
    }
    found = *link;
    *link = found->next;
    pthread_mutex_unlock(&lv_topology);
    free(found);
}

static void
publish(struct lv_group *group)
{
    struct slot *s;

    pthread_mutex_lock(&lv_topology);
    for (s = slots; s->number != group->number; s = s->next) {
    }
    s->group = group;
    pthread_mutex_unlock(&lv_topology);
}

bool
lv_group_unattached(void)
{
    bool found = false;

    pthread_mutex_lock(&lv_topology);
    for (struct slot *s = slots; s != NULL; s = s->next) {
        found = found || (s->group != NULL && s->group->container == NULL);
    }
    pthread_mutex_unlock(&lv_topology);
    return found;
}

/* The group's container with a reference, or NULL. */
static struct lv_container *
borrow_container(struct lv_group *group)
{
    struct lv_container *container;

    pthread_mutex_lock(&lv_topology);
    container = group->container;
    if (container != NULL) {
        lv_file_hold(&container->file);
    }
    pthread_mutex_unlock(&lv_topology);
    return container;
}

static int
dma_access(void *opaque, uint64_t address, void *out, const void *in, size_t size)
{
    struct lv_container *container = borrow_container(opaque);
    int ret, saved;

    if (container == NULL) {
        errno = EFAULT;
        return -1;
    }
    pthread_mutex_lock(&container->table_lock);
    ret = out != NULL ? lv_dma_read(&container->table, address, out, size)
                      : lv_dma_write(&container->table, address, in, size);
    saved = errno;
    pthread_mutex_unlock(&container->table_lock);
    lv_file_put(&container->file);
    errno = saved;
    return ret;
}

static int
dma_read(void *opaque, uint64_t address, void *data, size_t size)
{
    return dma_access(opaque, address, data, NULL, size);
}

static int
dma_write(void *opaque, uint64_t address, const void *data, size_t size)
{
    return dma_access(opaque, address, NULL, data, size);
}

static void
gone(void *opaque)
{
    struct lv_group *group = opaque;

    pthread_mutex_lock(&lv_topology);
    if (group->device != NULL) {
        lv_device_gone(group->device);
    }
    pthread_mutex_unlock(&lv_topology);
}

static const struct lv_client_ops client_ops = { dma_read, dma_write, gone };

static void
group_release(struct lv_file *file)
{
    struct lv_group *group = (struct lv_group *)file;

    if (group->container != NULL) {
        (void)lv_container_detach(group->container, group);
    }
    if (group->client != NULL) {
        lv_client_close(group->client);
    }
    unreserve(group->number);
    free(group);
}

int
lv_group_open(int number, const char *socket)
{
    struct lv_group *group;
    int fd, saved;

    if (!reserve(number)) {
        return -1;
    }
    group = calloc(1, sizeof(*group));
    if (group == NULL) {
        unreserve(number);
        return -1;
    }
    lv_file_init(&group->file, LV_GROUP, group_release);
    group->number = number;
    group->client = lv_client_connect(socket, &client_ops, group);
    if (group->client == NULL) {
        lv_log("group %d: no vfio-user server at %s: %m", number, socket);
        fd = -1;
    } else {
        publish(group);
        fd = lv_fdtable_install(&group->file);
    }
    saved = errno;
    lv_file_put(&group->file);
    errno = saved;
    return fd;
}

static int
get_status(struct lv_group *group, struct vfio_group_status *arg)
{
    if (arg->argsz < sizeof(*arg)) {
        errno = EINVAL;
        return -1;
    }
    arg->flags = VFIO_GROUP_FLAGS_VIABLE;
    pthread_mutex_lock(&lv_topology);
    if (group->container != NULL) {
        arg->flags |= VFIO_GROUP_FLAGS_CONTAINER_SET;
    }
    pthread_mutex_unlock(&lv_topology);
    return 0;
}

static int
set_container(struct lv_group *group, const int *fd)
{
    struct lv_file *file = lv_file_get_kind(*fd, LV_CONTAINER);
    int ret, saved;

    if (file == NULL) {
        errno = *fd < 0 ? EBADF : EINVAL;
        return -1;
    }
    ret = lv_container_attach((struct lv_container *)file, group);
    saved = errno;
    lv_file_put(file);
    errno = saved;
    return ret;
}

static int
unset_container(struct lv_group *group)
{
    struct lv_container *container = borrow_container(group);
    int ret, saved;

    if (container == NULL) {
        errno = EINVAL;
        return -1;
    }
    ret = lv_container_detach(container, group);
    saved = errno;
    lv_file_put(&container->file);
    errno = saved;
    return ret;
}

int
lv_group_ioctl(struct lv_group *group, unsigned long request, void *arg)
{
    switch (request) {
    case VFIO_GROUP_GET_STATUS:
        return get_status(group, arg);
    case VFIO_GROUP_SET_CONTAINER:
        return set_container(group, arg);
    case VFIO_GROUP_UNSET_CONTAINER:
        return unset_container(group);
    case VFIO_GROUP_GET_DEVICE_FD:
        /* The name is QEMU's idea of the directory; a group has one device. */
        return lv_device_open(group);
    default:
        errno = ENOTTY;
        return -1;
    }
}
