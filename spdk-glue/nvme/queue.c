/* Queue pairs: commands by slot, completions in batches. */

#include <errno.h>
#include <stdlib.h>

#include "glue.h"

struct slot {
	struct nvmuser_queue *queue;
	/* When the command was submitted; 0: there is none. */
	uint64_t since;
};

struct nvmuser_queue {
	struct spdk_nvme_ctrlr *ctrlr;
	struct spdk_nvme_qpair *qpair;
	uint32_t slot_count;
	/* What this poll has brought so far */
	uint32_t completed, failed;
	uint32_t *completions;
	struct nvmuser_failure *failures;
	struct slot slots[];
};

static void
complete(void *arg, const struct spdk_nvme_cpl *cpl)
{
	struct slot *slot = arg;
	struct nvmuser_queue *queue = slot->queue;
	uint32_t number = slot - queue->slots;

	slot->since = 0;
	queue->completions[queue->completed++] = number;
	if (spdk_unlikely(spdk_nvme_cpl_is_error(cpl))) {
		queue->failures[queue->failed++] = (struct nvmuser_failure) {
			.slot = number,
			.status_type = cpl->status.sct,
			.status_code = cpl->status.sc,
			.do_not_retry = cpl->status.dnr,
		};
	}
}

static void
queue_free(struct nvmuser_queue *queue)
{
	free(queue->completions);
	free(queue->failures);
	free(queue);
}

struct nvmuser_queue *
nvmuser_queue_open(struct spdk_nvme_ctrlr *ctrlr, uint32_t slots, bool batch)
{
	struct spdk_nvme_io_qpair_opts opts;
	struct nvmuser_queue *queue = calloc(1, sizeof(*queue) + slots * sizeof(queue->slots[0]));
	uint32_t i;

	if (queue == NULL) {
		return NULL;
	}
	nvmuser_forget_error();
	queue->ctrlr = ctrlr;
	queue->slot_count = slots;
	queue->completions = calloc(slots, sizeof(queue->completions[0]));
	queue->failures = calloc(slots, sizeof(queue->failures[0]));
	for (i = 0; i < slots; i++) {
		queue->slots[i].queue = queue;
	}
	spdk_nvme_ctrlr_get_default_io_qpair_opts(ctrlr, &opts, sizeof(opts));
	opts.delay_cmd_submit = batch;
	/* The driver uses three quarters of a queue's entries; what does not fit waits in it. */
	opts.io_queue_size = spdk_max(opts.io_queue_size, nvmuser_queue_entries(ctrlr, 2 * slots));
	/* Large transfers are split: each part is a request. For many of them there are too few: see nvmuser_submit(). */
	opts.io_queue_requests = spdk_max(opts.io_queue_requests, 4 * slots);
	if (queue->completions != NULL && queue->failures != NULL) {
		queue->qpair = spdk_nvme_ctrlr_alloc_io_qpair(ctrlr, &opts, sizeof(opts));
	}
	if (queue->qpair == NULL) {
		queue_free(queue);
		return NULL;
	}
	return queue;
}

void
nvmuser_queue_close(struct nvmuser_queue *queue)
{
	uint32_t i;

	/* SPDK's target answers the deletion of a queue when its commands have ended, however long that takes. */
	for (i = 0; i < queue->slot_count; i++) {
		if (queue->slots[i].since != 0) {
			nvmuser_abort(queue, i);
		}
	}
	/* What completes now is reported to complete(): there is room for one of each slot. */
	queue->completed = 0;
	queue->failed = 0;
	spdk_nvme_ctrlr_free_io_qpair(queue->qpair);
	queue_free(queue);
}

static int
started(struct slot *slot, int rc)
{
	if (rc == 0) {
		slot->since = spdk_get_ticks();
	}
	return rc;
}

int
nvmuser_submit(struct nvmuser_queue *queue, struct spdk_nvme_ns *ns, uint32_t slot, int opcode, uintptr_t address,
	       uint64_t lba, uint32_t blocks, uint32_t flags)
{
	struct slot *to = &queue->slots[slot];
	void *data = (void *)address;

	switch (opcode) {
	case NVMUSER_READ:
		return started(to, spdk_nvme_ns_cmd_read(ns, queue->qpair, data, lba, blocks, complete, to, flags));
	case NVMUSER_WRITE:
		return started(to, spdk_nvme_ns_cmd_write(ns, queue->qpair, data, lba, blocks, complete, to, flags));
	case NVMUSER_COMPARE:
		return started(to, spdk_nvme_ns_cmd_compare(ns, queue->qpair, data, lba, blocks, complete, to, flags));
	case NVMUSER_WRITE_ZEROES:
		return started(to, spdk_nvme_ns_cmd_write_zeroes(ns, queue->qpair, lba, blocks, complete, to, flags));
	case NVMUSER_FLUSH:
		return started(to, spdk_nvme_ns_cmd_flush(ns, queue->qpair, complete, to));
	default:
		return -EINVAL;
	}
}

int
nvmuser_submit_prp(struct nvmuser_queue *queue, struct spdk_nvme_ns *ns, uint32_t slot, int opcode, uint64_t prp1,
		   uint64_t prp2, uint64_t lba, uint16_t blocks, uint32_t flags)
{
	struct slot *to = &queue->slots[slot];
	struct spdk_nvme_cmd cmd = {
		.opc = opcode,
		.nsid = spdk_nvme_ns_get_id(ns),
		.dptr.prp = { .prp1 = prp1, .prp2 = prp2 },
		.cdw10 = (uint32_t)lba,
		.cdw11 = (uint32_t)(lba >> 32),
		.cdw12 = flags | (uint16_t)(blocks - 1),
	};

	/* Without a buffer of its own to describe, the driver leaves the pointers as they are. */
	return started(to, spdk_nvme_ctrlr_cmd_io_raw(queue->ctrlr, queue->qpair, &cmd, NULL, 0, complete, to));
}

int
nvmuser_submit_dsm(struct nvmuser_queue *queue, struct spdk_nvme_ns *ns, uint32_t slot, uint32_t attributes,
		   const struct spdk_nvme_dsm_range *ranges, uint16_t count)
{
	struct slot *to = &queue->slots[slot];

	return started(to, spdk_nvme_ns_cmd_dataset_management(ns, queue->qpair, attributes, ranges, count, complete,
			to));
}

static void
abort_done(void *arg, const struct spdk_nvme_cpl *cpl)
{
	/* Whether it came in time is told by the status of the command itself. */
	(void)arg;
	(void)cpl;
}

int
nvmuser_abort(struct nvmuser_queue *queue, uint32_t slot)
{
	return spdk_nvme_ctrlr_cmd_abort_ext(queue->ctrlr, queue->qpair, &queue->slots[slot], abort_done, NULL);
}

int
nvmuser_poll(struct nvmuser_queue *queue)
{
	int rc;

	queue->completed = 0;
	queue->failed = 0;
	rc = spdk_nvme_qpair_process_completions(queue->qpair, 0);
	return rc < 0 ? rc : (int)queue->completed;
}

const uint32_t *
nvmuser_queue_slots(struct nvmuser_queue *queue)
{
	return queue->completions;
}

const struct nvmuser_failure *
nvmuser_queue_failures(struct nvmuser_queue *queue)
{
	return queue->failures;
}

uint32_t
nvmuser_queue_failed(struct nvmuser_queue *queue)
{
	return queue->failed;
}

uint32_t
nvmuser_queue_expired(struct nvmuser_queue *queue, uint64_t older_than_us, uint32_t *slots, uint32_t max)
{
	uint64_t now = spdk_get_ticks();
	uint64_t ticks = older_than_us * (spdk_get_ticks_hz() / SPDK_SEC_TO_USEC);
	uint32_t i, found = 0;

	for (i = 0; i < queue->slot_count && found < max; i++) {
		if (queue->slots[i].since != 0 && now - queue->slots[i].since > ticks) {
			slots[found++] = i;
		}
	}
	return found;
}

static struct spdk_nvme_status
status_of(uint16_t status_type, uint16_t status_code)
{
	return (struct spdk_nvme_status) {
		.sct = status_type, .sc = status_code
	};
}

const char *
nvmuser_status_type_name(uint16_t status_type, uint16_t status_code)
{
	struct spdk_nvme_status status = status_of(status_type, status_code);

	return spdk_nvme_cpl_get_status_type_string(&status);
}

const char *
nvmuser_status_name(uint16_t status_type, uint16_t status_code)
{
	struct spdk_nvme_status status = status_of(status_type, status_code);

	return spdk_nvme_cpl_get_status_string(&status);
}
