/* What nvmuser_nvme offers: glue.h says what each does. */

struct spdk_nvme_ctrlr;
struct spdk_nvme_ns;
struct spdk_nvme_dsm_range {
	uint32_t length;
	uint64_t starting_lba;
	...;
};

int nvmuser_env_init(int memory_mib, bool no_huge, uint32_t core);

void *nvmuser_dma_alloc(size_t size, size_t align);
void nvmuser_dma_free(void *memory);

bool nvmuser_is_dma(uintptr_t address, size_t length);

const char *nvmuser_error(void);
void nvmuser_forget_error(void);

struct spdk_nvme_ctrlr *nvmuser_connect(const char *directory, uint32_t timeout_ms);

void nvmuser_disconnect(struct spdk_nvme_ctrlr *ctrlr);

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

uint32_t nvmuser_next_namespace(struct spdk_nvme_ctrlr *ctrlr, uint32_t after);

struct spdk_nvme_ns *nvmuser_namespace(struct spdk_nvme_ctrlr *ctrlr, uint32_t id, struct nvmuser_namespace *out);

enum { NVMUSER_FLUSH, NVMUSER_WRITE, NVMUSER_READ, NVMUSER_COMPARE, NVMUSER_WRITE_ZEROES,
       NVMUSER_DATASET_MANAGEMENT, NVMUSER_NOTHING };

struct nvmuser_queue;

struct nvmuser_queue *nvmuser_queue_open(struct spdk_nvme_ctrlr *ctrlr, uint32_t slots, bool batch);

void nvmuser_queue_close(struct nvmuser_queue *queue);

int nvmuser_submit(struct nvmuser_queue *queue, struct spdk_nvme_ns *ns, uint32_t slot, int opcode, uintptr_t address,
		   uint64_t lba, uint32_t blocks, uint32_t flags);

int nvmuser_submit_prp(struct nvmuser_queue *queue, struct spdk_nvme_ns *ns, uint32_t slot, int opcode, uint64_t prp1,
		       uint64_t prp2, uint64_t lba, uint16_t blocks, uint32_t flags);

int nvmuser_submit_dsm(struct nvmuser_queue *queue, struct spdk_nvme_ns *ns, uint32_t slot, uint32_t attributes,
		       const struct spdk_nvme_dsm_range *ranges, uint16_t count);

int nvmuser_abort(struct nvmuser_queue *queue, uint32_t slot);

struct nvmuser_failure {
	uint32_t slot;
	uint16_t status_type, status_code;
	bool do_not_retry;
};

int nvmuser_poll(struct nvmuser_queue *queue);

const uint32_t *nvmuser_queue_slots(struct nvmuser_queue *queue);
const struct nvmuser_failure *nvmuser_queue_failures(struct nvmuser_queue *queue);
uint32_t nvmuser_queue_failed(struct nvmuser_queue *queue);

uint32_t nvmuser_queue_expired(struct nvmuser_queue *queue, uint64_t older_than_us, uint32_t *slots, uint32_t max);

const char *nvmuser_status_type_name(uint16_t status_type, uint16_t status_code);
const char *nvmuser_status_name(uint16_t status_type, uint16_t status_code);

struct nvmuser_perf_options {
	uint32_t depth, io_size;
		uint32_t read_percent;
		uint32_t then;
		uint32_t rest_us;
	bool random;
	uint64_t seed;
};

struct nvmuser_perf_result {
		uint64_t ios, errors, followed;
		uint64_t ticks, tick_hz, min, max, total;
};

struct nvmuser_perf;

struct nvmuser_perf *nvmuser_perf_open(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_ns *ns,
				       const struct nvmuser_perf_options *options);

int nvmuser_perf_run(struct nvmuser_perf **perfs, uint32_t count, uint32_t milliseconds);

void nvmuser_perf_reset(struct nvmuser_perf *perf);

void nvmuser_perf_result(struct nvmuser_perf *perf, struct nvmuser_perf_result *out);

uint32_t nvmuser_perf_histogram(struct nvmuser_perf *perf, uint64_t *bounds, uint64_t *counts, uint32_t max);

void nvmuser_perf_close(struct nvmuser_perf *perf);
