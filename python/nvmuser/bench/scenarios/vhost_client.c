/* A client of a vhost-user-blk server that does what a driver has to, and no more: one queue, one thread, polled.
 *
 * The loop and what it counts are those of spdk-glue/nvme/perf.c, so that two servers are compared and not two clients.
 * Prints requests a second. Protocol: QEMU's docs/interop/vhost-user.rst; rings: virtio 1.2, 2.7 and 5.2.
 *
 * vhost_client SOCKET CPU SECONDS PATTERN DEPTH SIZE
 */

#include <err.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define HUGEPAGE (2ULL << 20)
#define PAGE 4096
#define RING 512
#define SECTOR 512
#define MAX_DEPTH 128
/* A request is three descriptors: header, data, status. */
#define PARTS 3
#define LOOK 1024

enum {
	GET_FEATURES = 1,
	SET_FEATURES = 2,
	SET_OWNER = 3,
	SET_MEM_TABLE = 5,
	SET_VRING_NUM = 8,
	SET_VRING_ADDR = 9,
	SET_VRING_BASE = 10,
	GET_VRING_BASE = 11,
	SET_VRING_KICK = 12,
	SET_VRING_CALL = 13,
	GET_PROTOCOL_FEATURES = 15,
	SET_PROTOCOL_FEATURES = 16,
	SET_VRING_ENABLE = 18,
	GET_CONFIG = 24,
};

#define VERSION 1
#define F_PROTOCOL_FEATURES (1ULL << 30)
#define F_CONFIG (1ULL << 9)

struct message {
	uint32_t request, flags, size;
	union {
		uint64_t number;
		struct { uint32_t index, number; } ring;
		struct { uint32_t index, flags; uint64_t descriptors, used, available, log; } address;
		struct { uint32_t count, padding; struct { uint64_t guest, size, user, offset; } region; } memory;
		struct { uint32_t offset, size, flags; struct virtio_blk_config blk; } config;
	} __attribute__((packed));
} __attribute__((packed));

#define HEADER offsetof(struct message, number)

/* What the server reads and writes, beside the data. */
struct shared {
	struct vring_desc descriptors[RING] __attribute__((aligned(PAGE)));
	struct { uint16_t flags, index, ring[RING]; } available __attribute__((aligned(PAGE)));
	struct { uint16_t flags, index; struct vring_used_elem ring[RING]; } used __attribute__((aligned(PAGE)));
	/* A cache line each, as in drivers, whose requests are objects of their own. */
	struct { struct virtio_blk_outhdr header; uint8_t status; } requests[MAX_DEPTH] __attribute__((aligned(64)));
};

struct client {
	int socket, kick;
	struct shared *shared;
	uint8_t *data;
	uint64_t places, next, random, since[MAX_DEPTH];
	uint32_t depth, size;
	bool at_random, write;
	uint16_t available, used;
	uint64_t ios, total, min, max;
};

/* xorshift64* */
static uint64_t
next_random(struct client *client)
{
	client->random ^= client->random >> 12;
	client->random ^= client->random << 25;
	client->random ^= client->random >> 27;
	return client->random * 0x2545F4914F6CDD1DULL;
}

static void
submit(struct client *client, uint32_t slot)
{
	struct shared *shared = client->shared;
	uint64_t place = client->next++ % client->places;

	if (client->at_random) {
		place = (uint64_t)(((unsigned __int128)next_random(client) * client->places) >> 64);
	}
	client->since[slot] = __rdtsc();
	shared->requests[slot].header.sector = place * (client->size / SECTOR);
	shared->available.ring[client->available++ % RING] = slot * PARTS;
}

static void
publish(struct client *client)
{
	struct shared *shared = client->shared;

	__atomic_store_n(&shared->available.index, client->available, __ATOMIC_RELEASE);
	/* What was published must be there before the server's wish is read (virtio 1.2, 2.7.13.4.1). */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!(__atomic_load_n(&shared->used.flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY)) {
		eventfd_write(client->kick, 1);
	}
}

/* Returns how many requests have ended; those are submitted again if there is to be more. */
static uint32_t
reap(struct client *client, bool more)
{
	struct shared *shared = client->shared;
	uint16_t index = __atomic_load_n(&shared->used.index, __ATOMIC_ACQUIRE);
	uint32_t count = (uint16_t)(index - client->used);

	while (client->used != index) {
		uint32_t slot = shared->used.ring[client->used++ % RING].id / PARTS;
		uint64_t took = __rdtsc() - client->since[slot];

		if (shared->requests[slot].status != VIRTIO_BLK_S_OK) {
			errx(1, "a request ended with status %u", shared->requests[slot].status);
		}
		client->ios++;
		client->total += took;
		client->min = took < client->min ? took : client->min;
		client->max = took > client->max ? took : client->max;
		if (more) {
			submit(client, slot);
		}
	}
	if (count != 0 && more) {
		publish(client);
	}
	return count;
}

static double
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Returns requests a second. */
static double
run(struct client *client, double seconds)
{
	double began = now(), until = began + seconds, took;
	uint32_t slot, left = client->depth;
	uint64_t ios;
	int polls = 0;

	for (slot = 0; slot < client->depth; slot++) {
		submit(client, slot);
	}
	publish(client);
	while (++polls % LOOK != 0 || now() < until) {
		reap(client, true);
	}
	took = now() - began;
	ios = client->ios;
	/* A server that was left with requests in flight would write into memory that is gone. */
	for (until = now() + 10; left > 0 && now() < until;) {
		left -= reap(client, false);
	}
	if (left > 0) {
		errx(1, "%u requests did not end", left);
	}
	return ios / took;
}

static void
tell(struct client *client, uint32_t request, struct message *message, uint32_t size, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = { message, HEADER + size };
	struct msghdr header = { .msg_iov = &iov, .msg_iovlen = 1 };

	message->request = request;
	message->flags = VERSION;
	message->size = size;
	if (fd >= 0) {
		struct cmsghdr *rights;

		header.msg_control = control;
		header.msg_controllen = sizeof(control);
		rights = CMSG_FIRSTHDR(&header);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
	}
	if (sendmsg(client->socket, &header, MSG_NOSIGNAL) != (ssize_t)(HEADER + size)) {
		err(1, "request %u", request);
	}
}

/* The reply takes the message's place. */
static void
ask(struct client *client, uint32_t request, struct message *message, uint32_t size)
{
	tell(client, request, message, size, -1);
	if (recv(client->socket, message, HEADER, MSG_WAITALL) != (ssize_t)HEADER || message->request != request ||
	    message->size > sizeof(*message) - HEADER ||
	    recv(client->socket, &message->number, message->size, MSG_WAITALL) != message->size) {
		errx(1, "no reply to request %u", request);
	}
}

static void
tell_number(struct client *client, uint32_t request, uint64_t number, int fd)
{
	struct message message = { .number = number };

	tell(client, request, &message, sizeof(message.number), fd);
}

static void
tell_ring(struct client *client, uint32_t request, uint32_t number)
{
	struct message message = { .ring = { .number = number } };

	tell(client, request, &message, sizeof(message.ring), -1);
}

static uint64_t
ask_number(struct client *client, uint32_t request)
{
	struct message message = {0};

	ask(client, request, &message, 0);
	return message.number;
}

static void
negotiate(struct client *client)
{
	const uint64_t wanted = 1ULL << VIRTIO_F_VERSION_1 | F_PROTOCOL_FEATURES;
	struct message message = { .config.size = sizeof(struct virtio_blk_config) };

	if ((ask_number(client, GET_FEATURES) & wanted) != wanted ||
	    !(ask_number(client, GET_PROTOCOL_FEATURES) & F_CONFIG)) {
		errx(1, "the server lacks features");
	}
	tell_number(client, SET_PROTOCOL_FEATURES, F_CONFIG, -1);
	tell(client, SET_OWNER, &message, 0, -1);
	ask(client, GET_CONFIG, &message, sizeof(message.config));
	client->places = message.config.blk.capacity / (client->size / SECTOR);
	tell_number(client, SET_FEATURES, wanted, -1);
}

/* Guest addresses are offsets into the one piece of memory. */
static void
share_memory(struct client *client)
{
	uint64_t begin = (sizeof(struct shared) + PAGE - 1) / PAGE * PAGE;
	uint64_t size = (begin + (uint64_t)client->depth * client->size + HUGEPAGE - 1) / HUGEPAGE * HUGEPAGE;
	int fd = memfd_create("vhost_client", MFD_HUGETLB);
	struct message message = { .memory = { .count = 1 } };
	uint32_t slot;

	if (fd < 0 || ftruncate(fd, size) != 0) {
		err(1, "no memory in hugepages");
	}
	client->shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (client->shared == MAP_FAILED) {
		err(1, "no memory in hugepages");
	}
	client->data = (uint8_t *)client->shared + begin;
	for (slot = 0; slot < client->depth; slot++) {
		struct vring_desc *parts = &client->shared->descriptors[slot * PARTS];
		uint64_t request = (uint8_t *)&client->shared->requests[slot] - (uint8_t *)client->shared;

		client->shared->requests[slot].header.type = client->write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
		parts[0] = (struct vring_desc) { request, sizeof(struct virtio_blk_outhdr), VRING_DESC_F_NEXT,
						 slot * PARTS + 1 };
		parts[1] = (struct vring_desc) { begin + (uint64_t)slot * client->size, client->size,
						 VRING_DESC_F_NEXT | (client->write ? 0 : VRING_DESC_F_WRITE),
						 slot * PARTS + 2 };
		parts[2] = (struct vring_desc) { request + sizeof(struct virtio_blk_outhdr), 1, VRING_DESC_F_WRITE, 0 };
	}
	message.memory.region.size = size;
	message.memory.region.user = (uintptr_t)client->shared;
	tell(client, SET_MEM_TABLE, &message, sizeof(message.memory), fd);
	close(fd);
}

static void
start_ring(struct client *client)
{
	struct message message = { .address = {
		.descriptors = (uintptr_t)client->shared->descriptors,
		.available = (uintptr_t)&client->shared->available,
		.used = (uintptr_t)&client->shared->used,
	} };
	int call = eventfd(0, EFD_NONBLOCK);

	client->kick = eventfd(0, EFD_NONBLOCK);
	client->shared->available.flags = VRING_AVAIL_F_NO_INTERRUPT;
	tell_ring(client, SET_VRING_NUM, RING);
	tell_ring(client, SET_VRING_BASE, 0);
	tell(client, SET_VRING_ADDR, &message, sizeof(message.address), -1);
	tell_number(client, SET_VRING_CALL, 0, call);
	tell_number(client, SET_VRING_KICK, 0, client->kick);
	tell_ring(client, SET_VRING_ENABLE, 1);
}

int
main(int argc, char **argv)
{
	struct client client = { .random = 1, .min = UINT64_MAX };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct message message = {0};
	cpu_set_t cpus;
	double iops;

	if (argc != 7) {
		errx(2, "SOCKET CPU SECONDS PATTERN DEPTH SIZE");
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[2]), &cpus);
	client.at_random = strncmp(argv[4], "rand", 4) == 0;
	client.write = strstr(argv[4], "write") != NULL;
	client.depth = atoi(argv[5]);
	client.size = atoi(argv[6]);
	client.socket = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path, argv[1], sizeof(address.sun_path) - 1);
	if (client.depth < 1 || client.depth > MAX_DEPTH || client.size == 0 || client.size % SECTOR != 0) {
		errx(2, "depth %u, size %u", client.depth, client.size);
	}
	if (sched_setaffinity(0, sizeof(cpus), &cpus) != 0 ||
	    connect(client.socket, (struct sockaddr *)&address, sizeof(address)) != 0) {
		err(1, "%s", argv[1]);
	}
	negotiate(&client);
	share_memory(&client);
	start_ring(&client);
	iops = run(&client, atof(argv[3]));
	/* The server lets go of the ring, and of the memory that it lies in. */
	ask(&client, GET_VRING_BASE, &message, sizeof(message.ring));
	printf("%f\n", iops);
	return 0;
}
