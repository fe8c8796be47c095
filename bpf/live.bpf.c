// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/*
 * The threads of a live process, without stopping one: nothing is attached to the system, and
 * nothing here runs but while the reader asks.
 *
 * `states` lists every thread with its registers. The reader copies the stacks of those that sleep,
 * and then `switches` tells who has run meanwhile. Of a thread that runs, the kernel knows only the
 * registers of its last entry; `catch_running` runs in the clock interrupts that the reader
 * switches on for some milliseconds, and takes registers and stack together.
 * `threads` and `mappings` are those of iterators.bpf.h, for readers that are not the agent.
 *
 * No program here reads memory that it might have to wait for: bpf_copy_from_user_task() takes
 * longer than process_vm_readv(2), and while it waits for a slow file, so does whatever waits for
 * RCU tasks trace, all over the host.
 *
 * Linux >= 6.1, x86-64. One source for two loaders: see compat.h.
 */
#include "compat.h"
#include "coreward.h"
#include "live.h"
#include "task.bpf.h"
#include "iterators.bpf.h"

#define CW_PF_KTHREAD 0x200000 /* <linux/sched.h> */
#define PAGE_OF(address) ((address) & ~(u64)(CW_PAGE - 1))

ARRAY_MAP(live_settings, struct cw_live_settings, 1);
RING_MAP(ring, CW_CAUGHT_RING);
HASH_MAP(caught_in, u32, u32, CW_CAUGHT_THREADS);

FN void fill_live(struct cw_live *out, struct task_struct *t)
{
	struct task_struct *leader = GET(t, group_leader);
	/* All threads are in one pid namespace (clone(2)); this one's own struct pid may be in no cache. */
	u32 level = GET(GET(leader, thread_pid), level);

	out->time_ns = bpf_ktime_get_ns();
	out->process_start_ns = GET(leader, start_boottime);
	out->start_ns = GET(t, start_boottime);
	out->tid = GET(t, pid);
	out->tgid = GET(t, tgid);
	out->ns_tid = level ? id_in_namespace(GET(t, thread_pid), level, 0) : out->tid;
	out->state = GET(t, __state);
	out->cpu = GET(t, thread_info.cpu);
	bpf_probe_read_kernel(out->comm, CW_COMM, ADDRESS(t, comm));
	out->utime = GET(t, utime);
	out->stime = GET(t, stime);
	out->runtime = GET(t, se.sum_exec_runtime);
	out->voluntary = GET(t, nvcsw);
	out->involuntary = GET(t, nivcsw);
}

FN void fill_registers(u64 *regs, struct task_struct *t)
{
	bpf_probe_read_kernel(regs, CW_PT_REGS * sizeof(u64), (void *)bpf_task_pt_regs(t));
	fill_selectors(regs, t);
}

ITERATE_ALSO(task, states)
{
	struct task_struct *t = ctx->task;
	struct cw_live out = {};

	if (!t || GET(t, exit_state) || (GET(t, flags) & NO_THREAD))
		return 0;
	if (GET(t, on_cpu))
		out.flags |= CW_LIVE_ON_CPU;
	IN_THIS_ORDER;
	fill_live(&out, t);
	if (GET(t, flags) & CW_PF_KTHREAD)
		out.flags |= CW_LIVE_KERNEL;
	else
		fill_registers(out.regs, t);
	/* It was asleep, and has not been switched away since: so it has not run. */
	IN_THIS_ORDER;
	if (GET(t, on_cpu))
		out.flags |= CW_LIVE_MOVED;
	IN_THIS_ORDER;
	if (GET(t, nvcsw) != out.voluntary || GET(t, nivcsw) != out.involuntary)
		out.flags |= CW_LIVE_MOVED;
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}

ITERATE_ALSO(task, switches)
{
	struct task_struct *t = ctx->task;
	struct cw_switches out = {};

	if (!t || GET(t, exit_state) || (GET(t, flags) & NO_THREAD))
		return 0;
	out.on_cpu = GET(t, on_cpu);
	IN_THIS_ORDER; /* who leaves a CPU in between has counted that already */
	out.switches = GET(t, nvcsw) + GET(t, nivcsw);
	out.start_ns = GET(t, start_boottime);
	out.tid = GET(t, pid);
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}

ON_CLOCK(catch_running)
{
	struct cw_live_settings *settings;
	struct task_struct *t;
	struct cw_caught *out;
	u32 zero = 0, tid = bpf_get_current_pid_tgid(), round, *seen;
	u64 bytes;

	settings = bpf_map_lookup_elem(&live_settings, &zero);
	if (!settings || settings->tgid != bpf_get_current_pid_tgid() >> 32)
		return 0;
	round = settings->round;
	seen = bpf_map_lookup_elem(&caught_in, &tid);
	if (seen && *seen == round)
		return 0;
	out = bpf_ringbuf_reserve(&ring, sizeof(*out), 0);
	if (!out)
		return 0;
	bpf_map_update_elem(&caught_in, &tid, &round, BPF_ANY);
	t = (void *)bpf_get_current_task_btf();
	out->time_ns = bpf_ktime_get_ns();
	out->start_ns = READ(t, start_boottime);
	out->tid = tid;
	out->round = round;
	out->reserved = 0;
	/* The interrupt came from user mode, or the kernel works for it: either way these are exact. */
	fill_registers(out->regs, t);
	out->stack_base = PAGE_OF(out->regs[CW_LIVE_SP]);
	bytes = (u64)settings->stack_pages * CW_PAGE;
	out->pages = 0;
	for (u64 at = 0; at < CW_CAUGHT_PAGES * CW_PAGE && at < bytes; at += CW_PAGE) {
		if (bpf_probe_read_user(out->stack + at, CW_PAGE, (void *)(out->stack_base + at)))
			break;
		out->pages++;
	}
	bpf_ringbuf_submit(out, 0);
	return 0;
}
