/* The measuring loop: a queue for each load, one thread, no Python in it. */

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include <spdk/histogram_data.h>

#include "glue.h"

struct task {
	struct nvmuser_perf *perf;
	void *data;
	uint64_t since;
	/* Of the command in flight: where it goes, and whether it is a write that another follows, or that other. */
	uint64_t lba;
	bool followed, following;
};

struct nvmuser_perf {
	struct nvmuser_perf_options options;
	struct spdk_nvme_ctrlr *ctrlr;
	struct spdk_nvme_ns *ns;
	struct spdk_nvme_qpair *qpair;
	struct spdk_histogram_data *histogram;
	struct nvmuser_perf_result result;
	uint32_t blocks_per_io;
	uint64_t places, next, random;
	uint32_t in_flight;
	bool draining;
	int rc;
	void *memory;
	struct task tasks[];
};

/* xorshift64*: what is needed is speed, and that places do not repeat. */
static uint64_t
next_random(struct nvmuser_perf *perf)
{
	perf->random ^= perf->random >> 12;
	perf->random ^= perf->random << 25;
	perf->random ^= perf->random >> 27;
	return perf->random * 0x2545F4914F6CDD1DULL;
}

static void complete(void *arg, const struct spdk_nvme_cpl *cpl);

static void
submitted(struct nvmuser_perf *perf, int rc)
{
	if (spdk_unlikely(rc != 0)) {
		perf->rc = rc;
		return;
	}
	perf->in_flight++;
}

static int
follow(struct nvmuser_perf *perf, struct task *task)
{
	struct spdk_nvme_dsm_range range = { .starting_lba = task->lba, .length = perf->blocks_per_io };

	switch (perf->options.then) {
	case NVMUSER_FLUSH:
		return spdk_nvme_ns_cmd_flush(perf->ns, perf->qpair, complete, task);
	case NVMUSER_DATASET_MANAGEMENT:
		return spdk_nvme_ns_cmd_dataset_management(perf->ns, perf->qpair, SPDK_NVME_DSM_ATTR_DEALLOCATE,
				&range, 1, complete, task);
	case NVMUSER_WRITE_ZEROES:
		return spdk_nvme_ns_cmd_write_zeroes(perf->ns, perf->qpair, task->lba, perf->blocks_per_io,
						     complete, task, 0);
	default:
		return -EINVAL;
	}
}

static void
submit(struct nvmuser_perf *perf, struct task *task)
{
	const struct nvmuser_perf_options *options = &perf->options;
	uint64_t place = perf->next++ % perf->places;
	bool read = options->read_percent == 100;

	if (options->random) {
		place = (uint64_t)(((unsigned __int128)next_random(perf) * perf->places) >> 64);
	}
	if (!read && options->read_percent != 0) {
		read = (next_random(perf) >> 33) % 100 < options->read_percent;
	}
	task->lba = place * perf->blocks_per_io;
	task->followed = !read && options->then != NVMUSER_NOTHING;
	task->since = spdk_get_ticks();
	submitted(perf, (read ? spdk_nvme_ns_cmd_read : spdk_nvme_ns_cmd_write)(perf->ns, perf->qpair, task->data,
			task->lba, perf->blocks_per_io, complete, task, 0));
}

static void
complete(void *arg, const struct spdk_nvme_cpl *cpl)
{
	struct task *task = arg;
	struct nvmuser_perf *perf = task->perf;
	uint64_t now = spdk_get_ticks();
	uint64_t took = now - task->since;

	perf->in_flight--;
	perf->result.ios++;
	perf->result.total += took;
	perf->result.min = spdk_min(perf->result.min, took);
	perf->result.max = spdk_max(perf->result.max, took);
	spdk_histogram_data_tally(perf->histogram, took);
	if (spdk_unlikely(spdk_nvme_cpl_is_error(cpl))) {
		perf->result.errors++;
	}
	perf->result.followed += task->following;
	task->following = task->followed;
	if (spdk_unlikely(perf->draining)) {
		return;
	}
	if (task->followed) {
		task->followed = false;
		task->since = now;
		submitted(perf, follow(perf, task));
	} else {
		submit(perf, task);
	}
}

static void
perf_free(struct nvmuser_perf *perf)
{
	if (perf->qpair != NULL) {
		spdk_nvme_ctrlr_free_io_qpair(perf->qpair);
	}
	spdk_histogram_data_free(perf->histogram);
	spdk_free(perf->memory);
	free(perf);
}

struct nvmuser_perf *
nvmuser_perf_open(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_ns *ns, const struct nvmuser_perf_options *options)
{
	struct spdk_nvme_io_qpair_opts opts;
	struct nvmuser_perf *perf = calloc(1, sizeof(*perf) + options->depth * sizeof(perf->tasks[0]));
	uint32_t i, requests;

	if (perf == NULL) {
		return NULL;
	}
	nvmuser_forget_error();
	perf->options = *options;
	perf->ctrlr = ctrlr;
	perf->ns = ns;
	perf->random = options->seed | 1;
	perf->blocks_per_io = options->io_size / spdk_nvme_ns_get_sector_size(ns);
	perf->places = spdk_nvme_ns_get_num_sectors(ns) / perf->blocks_per_io;
	perf->histogram = spdk_histogram_data_alloc();
	perf->memory = nvmuser_dma_alloc((size_t)options->depth * options->io_size, 4096);
	spdk_nvme_ctrlr_get_default_io_qpair_opts(ctrlr, &opts, sizeof(opts));
	/* As spdk_nvme_perf: commands that are submitted in one round of polling are told by one doorbell. */
	opts.delay_cmd_submit = true;
	opts.io_queue_size = spdk_max(opts.io_queue_size, nvmuser_queue_entries(ctrlr, options->depth + 1));
	/* What is larger than one transfer is split: each part is a request, and so is the whole. */
	requests = (options->depth + 1) * (options->io_size / spdk_nvme_ctrlr_get_max_xfer_size(ctrlr) + 2);
	opts.io_queue_requests = spdk_max(opts.io_queue_requests, requests);
	if (perf->histogram != NULL && perf->memory != NULL) {
		perf->qpair = spdk_nvme_ctrlr_alloc_io_qpair(ctrlr, &opts, sizeof(opts));
	}
	if (perf->qpair == NULL) {
		perf_free(perf);
		return NULL;
	}
	for (i = 0; i < options->depth; i++) {
		perf->tasks[i].perf = perf;
		perf->tasks[i].data = (uint8_t *)perf->memory + (size_t)i * options->io_size;
	}
	nvmuser_perf_reset(perf);
	return perf;
}

static void
begin(struct nvmuser_perf *perf)
{
	uint32_t i;

	if (perf->in_flight > 0) {
		return;
	}
	for (i = 0; i < perf->options.depth && perf->rc == 0; i++) {
		submit(perf, &perf->tasks[i]);
	}
}

int
nvmuser_perf_run(struct nvmuser_perf **perfs, uint32_t count, uint32_t milliseconds)
{
	uint64_t began = spdk_get_ticks();
	uint64_t until = began + milliseconds * (spdk_get_ticks_hz() / 1000);
	uint64_t now = began;
	/* What one submits for all that has completed would be time in which another one's completion lies there. */
	uint32_t most = count == 1 ? 0 : 1;
	bool found;
	uint32_t i;
	int rc = 0;

	for (i = 0; i < count; i++) {
		begin(perfs[i]);
	}
	while (now < until && rc >= 0) {
		found = false;
		for (i = 0; i < count && rc >= 0; i++) {
			rc = spdk_nvme_qpair_process_completions(perfs[i]->qpair, most);
			found |= rc != 0 || perfs[i]->options.rest_us == 0;
			rc = perfs[i]->rc != 0 ? perfs[i]->rc : rc;
		}
		if (!found) {
			usleep(perfs[0]->options.rest_us);
		}
		now = spdk_get_ticks();
	}
	for (i = 0; i < count; i++) {
		perfs[i]->result.ticks += now - began;
	}
	return rc < 0 ? rc : 0;
}

void
nvmuser_perf_reset(struct nvmuser_perf *perf)
{
	perf->result = (struct nvmuser_perf_result) {
		.min = UINT64_MAX, .tick_hz = spdk_get_ticks_hz()
	};
	spdk_histogram_data_reset(perf->histogram);
}

void
nvmuser_perf_result(struct nvmuser_perf *perf, struct nvmuser_perf_result *out)
{
	*out = perf->result;
}

struct filled {
	uint64_t *bounds, *counts;
	uint32_t found, max;
};

static void
keep_filled(void *ctx, uint64_t start, uint64_t end, uint64_t count, uint64_t total, uint64_t so_far)
{
	struct filled *filled = ctx;

	(void)start;
	(void)total;
	(void)so_far;
	if (count != 0 && filled->found < filled->max) {
		filled->bounds[filled->found] = end;
		filled->counts[filled->found++] = count;
	}
}

uint32_t
nvmuser_perf_histogram(struct nvmuser_perf *perf, uint64_t *bounds, uint64_t *counts, uint32_t max)
{
	struct filled filled = { .bounds = bounds, .counts = counts, .max = max };

	spdk_histogram_data_iterate(perf->histogram, keep_filled, &filled);
	return filled.found;
}

void
nvmuser_perf_close(struct nvmuser_perf *perf)
{
	perf->draining = true;
	while (perf->in_flight > 0 && spdk_nvme_qpair_process_completions(perf->qpair, 0) >= 0) {
		/* Finds out whether there is still somebody to wait for. */
		spdk_nvme_ctrlr_process_admin_completions(perf->ctrlr);
	}
	perf_free(perf);
}
