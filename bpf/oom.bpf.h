/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * What the out-of-memory killer chose, and which memory cgroup had nothing left: usage and limit at each
 * level above the victim, as they were when it was chosen. Part of coreward.bpf.c, not a header for
 * others.
 */
#ifndef COREWARD_OOM_H
#define COREWARD_OOM_H

/* The css is the first member of struct mem_cgroup, and level by level the parent's charge is all of it. */
FN u32 fill_levels(struct cw_oom *oom, struct task_struct *t)
{
	u32 count = 0;
#if HAS_MEMORY_CGROUP_TYPES
	struct css_set *cgroups = READ(t, cgroups);
	struct cgroup_subsys_state *state = 0;

	if (!HAS_MEMORY_CGROUPS)
		return 0;
	bpf_probe_read_kernel(&state, sizeof(state),
			      ADDRESS(cgroups, subsys[0]) + MEMORY_CGROUP_ID);
	for (int level = 0; level < CW_OOM_LEVELS; level++) {
		struct mem_cgroup *memory = (void *)state;
		struct cw_oom_level *out = &oom->levels[level];
		struct cgroup *cgroup;

		if (!state)
			break;
		cgroup = READ(state, cgroup);
		out->cgroup_id = READ(READ(cgroup, kn), id);
		out->usage = READ(memory, memory.usage.counter);
		out->limit = READ(memory, memory.max);
		out->failcnt = READ(memory, memory.failcnt);
		state = READ(state, parent);
		count++;
	}
#endif
	return count;
}

FN int on_victim(u64 victim)
{
	struct cw_program program = {};
	struct cw_oom *oom;

	if (!IS_KERNEL_POINTER(victim))
		return 0; /* the exit tells it */
	fill_program(&program, (void *)victim);
	/* one that is not told here is at its exit: see report_exit() */
	oom = weigh(&program, 0) == CW_TELL_COUNT ?
		      0 : bpf_ringbuf_reserve(&ring, sizeof(struct cw_oom), 0);
	if (!oom) {
		count(CW_DROPPED_OOM);
		return 0;
	}
	fill_event(&oom->event, (void *)victim, CW_EVENT_OOM, sizeof(struct cw_oom));
	__builtin_memset(&oom->event.sender, 0, sizeof(oom->event.sender));
	__builtin_memset(&oom->event.fault, 0, sizeof(oom->event.fault));
	__builtin_memset(oom->levels, 0, sizeof(oom->levels));
	oom->reserved = 0;
	oom->level_count = fill_levels(oom, (void *)victim);
	bpf_ringbuf_submit(oom, 0);
	return 0;
}

#endif
