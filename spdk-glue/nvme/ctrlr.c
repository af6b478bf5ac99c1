/* Controllers and namespaces. */

#include <stdio.h>
#include <string.h>

#include "glue.h"

struct spdk_nvme_ctrlr *
nvmuser_connect(const char *directory, uint32_t timeout_ms)
{
	struct spdk_nvme_transport_id trid = {};
	struct spdk_nvme_ctrlr_opts opts;

	nvmuser_forget_error();
	spdk_nvme_trid_populate_transport(&trid, SPDK_NVME_TRANSPORT_VFIOUSER);
	if (snprintf(trid.traddr, sizeof(trid.traddr), "%s", directory) >= (int)sizeof(trid.traddr)) {
		return NULL;
	}
	/* trid.subnqn stays empty: its default, the discovery subsystem's, would make a discovery controller of this. */
	spdk_nvme_ctrlr_get_default_ctrlr_opts(&opts, sizeof(opts));
	opts.admin_timeout_ms = timeout_ms;
	opts.keep_alive_timeout_ms = 0;
	opts.disable_error_logging = true;
	return spdk_nvme_connect(&trid, &opts, sizeof(opts));
}

void
nvmuser_disconnect(struct spdk_nvme_ctrlr *ctrlr)
{
	/* One that has gone need not be shut down, which would wait for it in vain: this finds out. */
	spdk_nvme_ctrlr_process_admin_completions(ctrlr);
	spdk_nvme_detach(ctrlr);
}

int
nvmuser_poll_admin(struct spdk_nvme_ctrlr *ctrlr)
{
	int rc = spdk_nvme_ctrlr_process_admin_completions(ctrlr);

	return rc < 0 ? rc : 0;
}

/* Identify's strings are padded with blanks. */
static void
copy_padded(char *out, const void *field, size_t size)
{
	memcpy(out, field, size);
	while (size > 0 && (out[size - 1] == ' ' || out[size - 1] == '\0')) {
		size--;
	}
	out[size] = '\0';
}

void
nvmuser_identify(struct spdk_nvme_ctrlr *ctrlr, struct nvmuser_identity *out)
{
	const struct spdk_nvme_ctrlr_data *data = spdk_nvme_ctrlr_get_data(ctrlr);
	const struct spdk_nvme_ctrlr_opts *opts = spdk_nvme_ctrlr_get_opts(ctrlr);

	memset(out, 0, sizeof(*out));
	out->vendor = data->vid;
	out->subsystem_vendor = data->ssvid;
	out->controller_id = data->cntlid;
	copy_padded(out->serial, data->sn, sizeof(data->sn));
	copy_padded(out->model, data->mn, sizeof(data->mn));
	copy_padded(out->firmware, data->fr, sizeof(data->fr));
	copy_padded(out->nqn, data->subnqn, sizeof(data->subnqn));
	out->version = data->ver.raw;
	out->max_transfer = spdk_nvme_ctrlr_get_max_xfer_size(ctrlr);
	out->namespaces = data->nn;
	out->max_queues = opts->num_io_queues;
	out->compare = data->oncs.compare;
	out->write_zeroes = data->oncs.write_zeroes;
	out->dsm = data->oncs.dsm;
	out->volatile_cache = data->vwc.present;
	out->shadow_doorbells = data->oacs.dbcs;
}

uint32_t
nvmuser_queue_entries(struct spdk_nvme_ctrlr *ctrlr, uint32_t wanted)
{
	return spdk_min(wanted, spdk_nvme_ctrlr_get_regs_cap(ctrlr).bits.mqes + 1u);
}

uint32_t
nvmuser_next_namespace(struct spdk_nvme_ctrlr *ctrlr, uint32_t after)
{
	return after == 0 ? spdk_nvme_ctrlr_get_first_active_ns(ctrlr) :
	       spdk_nvme_ctrlr_get_next_active_ns(ctrlr, after);
}

struct spdk_nvme_ns *
nvmuser_namespace(struct spdk_nvme_ctrlr *ctrlr, uint32_t id, struct nvmuser_namespace *out)
{
	struct spdk_nvme_ns *ns = spdk_nvme_ctrlr_get_ns(ctrlr, id);
	const struct spdk_nvme_ns_data *data;
	const struct spdk_uuid *uuid;
	const uint8_t *nguid;

	if (ns == NULL || !spdk_nvme_ns_is_active(ns)) {
		return NULL;
	}
	memset(out, 0, sizeof(*out));
	data = spdk_nvme_ns_get_data(ns);
	out->id = id;
	out->block_size = spdk_nvme_ns_get_sector_size(ns);
	out->metadata_size = spdk_nvme_ns_get_md_size(ns);
	out->blocks = spdk_nvme_ns_get_num_sectors(ns);
	uuid = spdk_nvme_ns_get_uuid(ns);
	out->has_uuid = uuid != NULL;
	if (uuid != NULL) {
		memcpy(out->uuid, uuid, sizeof(out->uuid));
	}
	nguid = spdk_nvme_ns_get_nguid(ns);
	out->has_nguid = nguid != NULL;
	if (nguid != NULL) {
		memcpy(out->nguid, nguid, sizeof(out->nguid));
	}
	memcpy(out->eui64, &data->eui64, sizeof(out->eui64));
	return ns;
}
