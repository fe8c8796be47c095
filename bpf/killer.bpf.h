/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * Who sent a fatal signal, whole: taken while he sends it, for he may be gone a moment later. Told
 * when the signal is delivered, just before the death. Part of coreward.bpf.c, not a header for others.
 */
#ifndef COREWARD_KILLER_H
#define COREWARD_KILLER_H

/* <linux/ptrace.h>: PT_EXITKILL in task_struct.ptrace */
#define CW_PT_EXITKILL (1U << 23)
/* <asm-generic/resource.h> */
#define CW_RLIMIT_CPU 0
#define CW_RLIMIT_CORE 4
#define CW_RLIMIT_RTTIME 15
#define CW_RLIM_INFINITY (~0UL)
/* Signals between being sent and being delivered: microseconds, unless the process is stopped. */
#define CW_KILLERS 1024

HASH_MAP(killers, u32, struct cw_killer, CW_KILLERS);
PER_CPU_MAP(fresh_killer, struct cw_killer); /* signal_generate runs with interrupts off */

/* The process that a pid namespace ends with. */
FN int is_reaper(struct task_struct *t)
{
	struct pid *pid = READ(t, thread_pid);
	struct upid id = {};
	struct task_struct *reaper;

	if (!pid)
		return 0;
	bpf_probe_read_kernel(&id, sizeof(id), ADDRESS(pid, numbers[0]) + READ(pid, level));
	reaper = READ(id.ns, child_reaper);
	return reaper && READ(reaper, tgid) == READ(t, tgid);
}

FN u32 circumstances(struct kernel_siginfo *info, struct task_struct *by, struct task_struct *t)
{
	struct task_struct *tracer = READ(t, parent), *parent = READ(t, real_parent);
	struct signal_struct *group = READ(t, signal);
	u32 pid = READ(by, tgid), found = 0;

	if (!is_real_info(info))
		found = (unsigned long)info == CW_SEND_SIG_PRIV ? CW_SENT_BY_KERNEL : CW_SENT_BARE;
	if (READ(by, flags) & CW_PF_EXITING)
		found |= CW_SENT_LEAVING;
	if (pid == READ(t, tgid))
		found |= CW_SENT_TO_SELF;
	if (READ(parent, tgid) == pid)
		found |= CW_SENT_PARENT;
	if (is_reaper(by))
		found |= CW_SENT_REAPER;
	if (READ(t, ptrace) & CW_PT_EXITKILL && READ(tracer, tgid) == pid)
		found |= CW_SENT_TRACER;
	if (READ(group, rlim[CW_RLIMIT_CPU].rlim_max) != CW_RLIM_INFINITY)
		found |= CW_SENT_CPU_LIMIT;
	if (READ(group, rlim[CW_RLIMIT_RTTIME].rlim_max) != CW_RLIM_INFINITY)
		found |= CW_SENT_RT_LIMIT;
	return found;
}

/* The begin of its arguments. Where they are not in memory that is all that can be known: nobody waits. */
FN void fill_arguments(struct cw_killer *killer, struct task_struct *by)
{
	struct mm_struct *mm = READ(by, mm);
	u64 start = mm ? READ(mm, arg_start) : 0, end = mm ? READ(mm, arg_end) : 0;
	u64 size = end - start;

	killer->args_len = -1;
	killer->args_size = 0;
	if (!start || end <= start)
		return;
	killer->args_size = size < ~0U ? size : ~0U;
	if (size > CW_ARGS)
		size = CW_ARGS;
	ONE_REGISTER(size);
	if (size > CW_ARGS)
		return;
	if (!bpf_probe_read_user(killer->args, size, (void *)start))
		killer->args_len = size;
}

/* `t` is about to get a fatal signal from the task that runs. */
FN void note_killer(int signal, struct kernel_siginfo *info, struct task_struct *t)
{
	struct task_struct *by = (void *)bpf_get_current_task_btf(), *leader, *parent;
	struct cw_killer *killer;
	u32 pid, zero = 0;

	killer = bpf_map_lookup_elem(&fresh_killer, &zero);
	if (!killer)
		return;
	leader = READ(t, group_leader);
	parent = READ(by, real_parent);
	parent = READ(parent, group_leader);
	killer->type = CW_EVENT_KILLER;
	killer->size = sizeof(struct cw_killer);
	killer->time_ns = bpf_ktime_get_boot_ns();
	killer->target_start_ns = READ(leader, start_boottime);
	killer->target_pid = READ(t, tgid);
	killer->signal = signal;
	killer->code = is_real_info(info) ? READ(info, si_code) : 0;
	killer->flags = circumstances(info, by, t);
	killer->parent_start_ns = READ(parent, start_boottime);
	bpf_probe_read_kernel(killer->parent_comm, CW_COMM, ADDRESS(parent, comm));
	fill_who(&killer->who, by);
	fill_arguments(killer, by);
	pid = killer->target_pid;
	bpf_map_update_elem(&killers, &pid, killer, BPF_ANY);
}

/* Before the death that it explains. Without room in the ring only what `senders` has is told. */
FN void tell_killer(u32 pid, u64 start_ns, int signal, struct kernel_siginfo *info)
{
	struct cw_killer *known = bpf_map_lookup_elem(&killers, &pid), *out;

	if (!known || known->target_start_ns != start_ns || known->signal != signal)
		return;
	/* a fault of its own, and not the signal that waits: nobody sent this one */
	if (is_real_info(info) && by_kernel(READ(info, si_code)) &&
	    !(known->flags & CW_SENT_BY_KERNEL))
		return;
	out = bpf_ringbuf_reserve(&ring, sizeof(struct cw_killer), 0);
	if (!out)
		return;
	bpf_probe_read_kernel(out, sizeof(struct cw_killer), known);
	bpf_ringbuf_submit(out, 0);
}

#endif
