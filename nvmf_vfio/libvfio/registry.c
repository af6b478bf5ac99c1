/* SPDX-License-Identifier: BSD-3-Clause */
#include "registry.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "number.h"

#define DEV_VFIO    "/dev/vfio/"
#define GROUP_LINK  "/iommu_group"

struct known {
    int group;
    char *directory;
    struct known *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct known *known;

/* The number that text starts with and *end, or -1. */
static int
parse_group(const char *text, const char **end)
{
    uint64_t value;

    if (!lv_parse_number(&text, 10, INT_MAX, &value)) {
        return -1;
    }
    *end = text;
    return (int)value;
}

static bool
has_socket(const char *directory)
{
    char path[PATH_MAX];
    struct stat st;
    int n = snprintf(path, sizeof(path), "%s/cntrl", directory);

    /* A link to a socket that is not there yet counts. */
    return n > 0 && (size_t)n < sizeof(path) && lstat(path, &st) == 0;
}

static void
forget(int group)
{
    struct known **link, *found;

    pthread_mutex_lock(&lock);
    for (link = &known; *link != NULL && (*link)->group != group;
         link = &(*link)->next) {
    }
    found = *link;
    if (found != NULL) {
        *link = found->next;
    }
    pthread_mutex_unlock(&lock);
    if (found != NULL) {
        free(found->directory);
        free(found);
    }
}

static void
remember(int group, const char *directory)
{
    char *copy = strdup(directory);
    struct known *k;

    if (copy == NULL) {
        return;
    }
    pthread_mutex_lock(&lock);
    for (k = known; k != NULL && k->group != group; k = k->next) {
    }
    if (k == NULL) {
        k = calloc(1, sizeof(*k));
        if (k != NULL) {
            k->group = group;
            k->next = known;
            known = k;
        }
    }
    if (k != NULL) {
        free(k->directory);
        k->directory = copy;
        copy = NULL;
    }
    pthread_mutex_unlock(&lock);
    free(copy);
}

void
lv_registry_learn(const char *link, const char *target, size_t target_length)
{
    size_t length = strlen(link), suffix = strlen(GROUP_LINK);
    char directory[PATH_MAX], name[PATH_MAX];
    const char *base, *end;
    int group;

    if (length <= suffix || strcmp(link + length - suffix, GROUP_LINK) != 0 ||
        length - suffix >= sizeof(directory) || target_length >= sizeof(name)) {
        return;
    }
    memcpy(directory, link, length - suffix);
    directory[length - suffix] = '\0';
    memcpy(name, target, target_length);
    name[target_length] = '\0';
    base = strrchr(name, '/');
    base = base == NULL ? name : base + 1;
    group = parse_group(base, &end);
    if (group < 0 || *end != '\0') {
        return;
    }
    if (has_socket(directory)) {
        remember(group, directory);
    } else {
        forget(group);          /* a device of the host, with the same number */
    }
}

int
lv_registry_group(const char *path)
{
    const char *end;
    int group;

    if (strncmp(path, DEV_VFIO, strlen(DEV_VFIO)) != 0) {
        return -1;
    }
    group = parse_group(path + strlen(DEV_VFIO), &end);
    return group >= 0 && *end == '\0' ? group : -1;
}

/* LIBVFIO_DIR/N if that is a device directory. */
static int
default_directory(int group, char *path, size_t size)
{
    const char *root = getenv("LIBVFIO_DIR");
    int n;

    if (root == NULL || *root == '\0') {
        errno = ENOENT;
        return -1;
    }
    n = snprintf(path, size, "%s/%d", root, group);
    if (n < 0 || (size_t)n >= size) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (!has_socket(path)) {
        errno = ENOENT;
        return -1;
    }
    return 0;
}

int
lv_registry_socket(int group, char *path, size_t size)
{
    char directory[PATH_MAX];
    struct known *k;
    int n = 0;

    directory[0] = '\0';
    pthread_mutex_lock(&lock);
    for (k = known; k != NULL; k = k->next) {
        if (k->group == group) {
            n = snprintf(directory, sizeof(directory), "%s", k->directory);
        }
    }
    pthread_mutex_unlock(&lock);
    if (directory[0] == '\0' &&
        default_directory(group, directory, sizeof(directory)) != 0) {
        return -1;
    }
    n = snprintf(path, size, "%s/cntrl", directory);
    if (n < 0 || (size_t)n >= size) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return 0;
}

const char *
lv_registry_translate(const char *path, char *buffer, size_t size)
{
    char directory[PATH_MAX];
    const char *rest;
    int group, n, saved = errno;

    if (path == NULL || strncmp(path, DEV_VFIO, strlen(DEV_VFIO)) != 0) {
        return path;
    }
    group = parse_group(path + strlen(DEV_VFIO), &rest);
    if (group < 0 || (*rest != '\0' && *rest != '/') ||
        default_directory(group, directory, sizeof(directory)) != 0) {
        errno = saved;
        return path;
    }
    n = snprintf(buffer, size, "%s%s", directory, rest);
    errno = saved;
    return n > 0 && (size_t)n < size ? buffer : path;
}
