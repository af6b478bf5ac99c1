/* DPDK in this process: its memory, and what SPDK logs. */

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <rte_memory.h>
#include <spdk/log.h>

#include "glue.h"

static char g_error[256];

/* SPDK would write to stderr, which belongs to the program that imports us. */
static void
keep_error(int level, const char *file, const int line, const char *func, const char *format, va_list args)
{
	(void)file;
	(void)line;
	(void)func;
	/* The first is the reason, the others are what came of it. */
	if (level == SPDK_LOG_ERROR && g_error[0] == '\0') {
		vsnprintf(g_error, sizeof(g_error), format, args);
		g_error[strcspn(g_error, "\n")] = '\0';
	}
}

const char *
nvmuser_error(void)
{
	return g_error;
}

void
nvmuser_forget_error(void)
{
	g_error[0] = '\0';
}

int
nvmuser_env_init(int memory_mib, bool no_huge, uint32_t core)
{
	struct spdk_env_opts opts;
	cpu_set_t allowed;
	char lcores[32];
	int rc;

	spdk_log_open(keep_error);
	opts.opts_size = sizeof(opts);
	spdk_env_opts_init(&opts);
	/* As --lcores, and not as a mask, of which DPDK would say on stderr that it is deprecated. */
	snprintf(lcores, sizeof(lcores), "0@%u", core);
	opts.name = "nvmuser_host";
	opts.core_mask = NULL;
	opts.lcore_map = lcores;
	opts.shm_id = -1;
	opts.mem_size = memory_mib;
	opts.no_pci = true;
	opts.no_huge = no_huge;
	opts.hugepage_single_segments = !no_huge;

	/* DPDK pins the thread that calls to its first core. */
	if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
		return -errno;
	}
	rc = spdk_env_init(&opts);
	sched_setaffinity(0, sizeof(allowed), &allowed);
	return rc;
}

void *
nvmuser_dma_alloc(size_t size, size_t align)
{
	return spdk_zmalloc(size, align, NULL, SPDK_ENV_NUMA_ID_ANY, SPDK_MALLOC_DMA | SPDK_MALLOC_SHARE);
}

void
nvmuser_dma_free(void *memory)
{
	spdk_free(memory);
}

bool
nvmuser_is_dma(uintptr_t address, size_t length)
{
	const void *first = (const void *)address;
	const void *last = (const void *)(address + (length == 0 ? 0 : length - 1));

	return rte_mem_virt2memseg(first, NULL) != NULL && rte_mem_virt2memseg(last, NULL) != NULL;
}
