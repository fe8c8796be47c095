/* SPDX-License-Identifier: Apache-2.0 */
/* Deaths that BPF has counted, and does not tell otherwise: see bpf/share.bpf.h. */
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native.h"

#define TICK_NS 10000000     /* of /proc/PID/stat: USER_HZ is 100 */

/*
 * Whether the death of this process, which dumps core, is in a tally and nowhere else: its owner's
 * share of records is used up, and with it that of cores. One bpf(2), of a map of the kernel's.
 */
bool was_counted(const struct orders *o, const struct taken *t)
{
	uint32_t pid = (uint32_t)t->pid;
	uint64_t start_ns = 0;
	union bpf_attr look = {
		.map_fd = (uint32_t)o->counted_map,
		.key = (uintptr_t)&pid,
		.value = (uintptr_t)&start_ns,
	};

	return o->counted_map >= 0 && t->start_ticks &&
	       !syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &look, sizeof(look)) &&
	       start_ns / TICK_NS == t->start_ticks;
}
