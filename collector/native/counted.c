/* SPDX-License-Identifier: Apache-2.0 */
/* What BPF's maps say of a process: one bpf(2) each, of a map of the kernel's. */
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native.h"

#define TICK_NS 10000000     /* of /proc/PID/stat: USER_HZ is 100 */

static bool look_up(int map, const struct taken *t, void *value)
{
	uint32_t pid = (uint32_t)t->pid;
	union bpf_attr look = {
		.map_fd = (uint32_t)map,
		.key = (uintptr_t)&pid,
		.value = (uintptr_t)value,
	};

	return map >= 0 && t->start_ticks &&
	       !syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &look, sizeof(look));
}

/*
 * Whether the death of this process, which dumps core, is in a tally and nowhere else: its owner's
 * share of records is used up, and with it that of cores. See bpf/share.bpf.h.
 */
bool was_counted(const struct orders *o, const struct taken *t)
{
	uint64_t start_ns = 0;

	return look_up(o->counted_map, t, &start_ns) && start_ns / TICK_NS == t->start_ticks;
}

/* Whether the agent holds its memory while it lives: then it is one of the memory's users. */
bool is_armed(const struct orders *o, const struct taken *t)
{
	struct cw_armed armed = { 0 };

	return look_up(o->armed_map, t, &armed) && armed.start_tick == t->start_ticks &&
	       !(armed.flags & CW_ARMED_BY_FORK);
}
