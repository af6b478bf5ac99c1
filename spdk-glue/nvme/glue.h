/*
 * What stands between SPDK's NVMe driver and nvmuser.initiator.
 *
 * Owns what would be slow or unsafe in Python: completions are collected by the driver's callbacks and handed over in
 * batches, so that Python is entered once for many; a command is known by its slot, a small number that Python chooses;
 * the measuring loop runs without Python at all.
 *
 * Functions return 0 or a negative errno, unless they say otherwise. A queue belongs to one thread at a time; the
 * environment and the controllers may be used from any.
 */
#ifndef NVMUSER_NVME_GLUE_H
#define NVMUSER_NVME_GLUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <spdk/env.h>
#include <spdk/likely.h>
#include <spdk/nvme.h>
#include <spdk/util.h>

/*
 * DPDK's memory in this process, once. Without PCI, signals or locks on cores: another DPDK process is not disturbed.
 * The thread that calls keeps the CPUs that it may run on. With hugepages the memory lies in one file, because
 * a vfio-user client hands one descriptor over for each region.
 */
int nvmuser_env_init(int memory_mib, bool no_huge, uint32_t core);

void *nvmuser_dma_alloc(size_t size, size_t align);
void nvmuser_dma_free(void *memory);

/* Whether all of it can be handed to the device as it is. */
bool nvmuser_is_dma(uintptr_t address, size_t length);

/* The first error that the driver logged since nvmuser_forget_error(), or "". */
const char *nvmuser_error(void);
void nvmuser_forget_error(void);

/* `directory` has the socket `cntrl`. NULL: nvmuser_error() may say why. Blocks for as long as `timeout_ms`. */
struct spdk_nvme_ctrlr *nvmuser_connect(const char *directory, uint32_t timeout_ms);

void nvmuser_disconnect(struct spdk_nvme_ctrlr *ctrlr);

/* Completions of admin commands, events, and whether the peer is still there: a negative errno when it is not. */
int nvmuser_poll_admin(struct spdk_nvme_ctrlr *ctrlr);

struct nvmuser_identity {
	uint16_t vendor, subsystem_vendor, controller_id;
	char serial[21], model[41], firmware[9], nqn[257];
	uint32_t version, max_transfer, namespaces;
	uint32_t max_queues;
	bool compare, write_zeroes, dsm, volatile_cache, shadow_doorbells;
};

void nvmuser_identify(struct spdk_nvme_ctrlr *ctrlr, struct nvmuser_identity *out);

struct nvmuser_namespace {
	uint32_t id, block_size, metadata_size;
	uint64_t blocks;
	uint8_t uuid[16], nguid[16], eui64[8];
	bool has_uuid, has_nguid;
};

/* The first active namespace after `after` (0 for the first): its number, or 0. */
uint32_t nvmuser_next_namespace(struct spdk_nvme_ctrlr *ctrlr, uint32_t after);

/* NULL when it is not active. */
struct spdk_nvme_ns *nvmuser_namespace(struct spdk_nvme_ctrlr *ctrlr, uint32_t id, struct nvmuser_namespace *out);

/* NVMe's opcodes */
enum {
	NVMUSER_FLUSH = SPDK_NVME_OPC_FLUSH,
	NVMUSER_WRITE = SPDK_NVME_OPC_WRITE,
	NVMUSER_READ = SPDK_NVME_OPC_READ,
	NVMUSER_COMPARE = SPDK_NVME_OPC_COMPARE,
	NVMUSER_WRITE_ZEROES = SPDK_NVME_OPC_WRITE_ZEROES,
	NVMUSER_DATASET_MANAGEMENT = SPDK_NVME_OPC_DATASET_MANAGEMENT,
	/* No command: NVMe's opcodes have eight bits. */
	NVMUSER_NOTHING = 0x100,
};

struct nvmuser_queue;

/* `wanted`, or what a queue of this controller has at most: the driver asks for what it is told, and is refused. */
uint32_t nvmuser_queue_entries(struct spdk_nvme_ctrlr *ctrlr, uint32_t wanted);

/*
 * `slots` commands may be in flight. `batch`: commands are told to the device when the queue is polled, and not each by
 * itself.
 */
struct nvmuser_queue *nvmuser_queue_open(struct spdk_nvme_ctrlr *ctrlr, uint32_t slots, bool batch);

/* What is in flight is given up by the device before this returns. */
void nvmuser_queue_close(struct nvmuser_queue *queue);

/*
 * `address` is DMA memory, or 0 for a command without data. -ENOMEM: the driver has no requests left for the parts of a
 * large transfer; when a command has completed, it may have.
 */
int nvmuser_submit(struct nvmuser_queue *queue, struct spdk_nvme_ns *ns, uint32_t slot, int opcode, uintptr_t address,
		   uint64_t lba, uint32_t blocks, uint32_t flags);

/*
 * The same for data that lies in pages here and there, named by the command itself as a guest's driver does: `prp1` and
 * `prp2` (NVM Express base specification, "Physical Region Page Entry and List"). It is never split.
 */
int nvmuser_submit_prp(struct nvmuser_queue *queue, struct spdk_nvme_ns *ns, uint32_t slot, int opcode, uint64_t prp1,
		       uint64_t prp2, uint64_t lba, uint16_t blocks, uint32_t flags);

/* Dataset management; `ranges` is copied. */
int nvmuser_submit_dsm(struct nvmuser_queue *queue, struct spdk_nvme_ns *ns, uint32_t slot, uint32_t attributes,
		       const struct spdk_nvme_dsm_range *ranges, uint16_t count);

/* Asks the device to give up the command in `slot`, which completes in any case, with whatever status. */
int nvmuser_abort(struct nvmuser_queue *queue, uint32_t slot);

/* An error among those that were polled. */
struct nvmuser_failure {
	uint32_t slot;
	uint16_t status_type, status_code;
	bool do_not_retry;
};

/*
 * Polls once and returns how many commands have completed: their slots are in nvmuser_queue_slots(), those that failed
 * also in nvmuser_queue_failures(). A negative errno: the controller is gone, nothing of this queue will complete.
 */
int nvmuser_poll(struct nvmuser_queue *queue);

const uint32_t *nvmuser_queue_slots(struct nvmuser_queue *queue);
const struct nvmuser_failure *nvmuser_queue_failures(struct nvmuser_queue *queue);
uint32_t nvmuser_queue_failed(struct nvmuser_queue *queue);

/* Slots whose command was submitted more than `older_than_us` ago: their number, at most `max`. */
uint32_t nvmuser_queue_expired(struct nvmuser_queue *queue, uint64_t older_than_us, uint32_t *slots, uint32_t max);

/* The name of a status in SPDK's words: of its type, and its own. */
const char *nvmuser_status_type_name(uint16_t status_type, uint16_t status_code);
const char *nvmuser_status_name(uint16_t status_type, uint16_t status_code);

struct nvmuser_perf_options {
	uint32_t depth, io_size;
	/* 0 to 100 */
	uint32_t read_percent;
	/* The command that each write is followed by, for the same blocks: a flush, a deallocation, zeroes, nothing. */
	uint32_t then;
	/* Microseconds of sleep after a look that has found nothing; 0: it polls. */
	uint32_t rest_us;
	bool random;
	uint64_t seed;
};

struct nvmuser_perf_result {
	/* All commands; those that failed; those that followed a write. */
	uint64_t ios, errors, followed;
	/* Time in which I/O was submitted and completed, and latencies, in ticks. */
	uint64_t ticks, tick_hz, min, max, total;
};

struct nvmuser_perf;

/* Run to completion on one queue of its own: each completion submits the next command. */
struct nvmuser_perf *nvmuser_perf_open(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_ns *ns,
				       const struct nvmuser_perf_options *options);

/*
 * All of them go on for so long, in turns, one completion of each at a time; what is in flight stays there. Time between
 * two calls is not counted.
 */
int nvmuser_perf_run(struct nvmuser_perf **perfs, uint32_t count, uint32_t milliseconds);

/* Forgets what was measured so far (a warm-up). */
void nvmuser_perf_reset(struct nvmuser_perf *perf);

void nvmuser_perf_result(struct nvmuser_perf *perf, struct nvmuser_perf_result *out);

/* The histogram's filled buckets, at most `max`: upper bounds in ticks and counts. */
uint32_t nvmuser_perf_histogram(struct nvmuser_perf *perf, uint64_t *bounds, uint64_t *counts, uint32_t max);

/* Waits for what is in flight. */
void nvmuser_perf_close(struct nvmuser_perf *perf);

#endif
