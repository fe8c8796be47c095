// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/*
 * What the kernel knows of a death, recorded while it happens; and the threads and mappings of
 * one process, listed without stopping it.
 *
 * Deaths: who sent a signal (signal_generate), that it is fatal (signal_deliver), that the last
 * thread left (sched_process_exit), that the OOM killer chose (mark_victim). Records go to the
 * map `ring`. Which deaths matter is decided elsewhere, but for the cheap refusals made here.
 * Threads and mappings: task iterators; the reader chooses the process when it opens them.
 *
 * Linux >= 6.1, x86-64. One source for two loaders: see compat.h.
 */
#include "compat.h"
#include "coreward.h"

/* <asm/signal.h>; not in BTF */
#define CW_SIGQUIT 3
#define CW_SIGILL 4
#define CW_SIGTRAP 5
#define CW_SIGABRT 6
#define CW_SIGBUS 7
#define CW_SIGFPE 8
#define CW_SIGKILL 9
#define CW_SIGSEGV 11
#define CW_SIGCHLD 17
#define CW_SIGCONT 18
#define CW_SIGSTOP 19
#define CW_SIGTSTP 20
#define CW_SIGTTIN 21
#define CW_SIGTTOU 22
#define CW_SIGURG 23
#define CW_SIGXCPU 24
#define CW_SIGXFSZ 25
#define CW_SIGWINCH 28
#define CW_SIGSYS 31
#define CW_NSIG 64
#define SIGNAL_BIT(n) (1ULL << ((n) - 1))

/* Signals whose default does not kill. */
#define HARMLESS                                                                          \
	(SIGNAL_BIT(CW_SIGCHLD) | SIGNAL_BIT(CW_SIGCONT) | SIGNAL_BIT(CW_SIGURG) |         \
	 SIGNAL_BIT(CW_SIGWINCH) | SIGNAL_BIT(CW_SIGSTOP) | SIGNAL_BIT(CW_SIGTSTP) |       \
	 SIGNAL_BIT(CW_SIGTTIN) | SIGNAL_BIT(CW_SIGTTOU))
/* Signals by which the hardware complains. */
#define FAULTS                                                                            \
	(SIGNAL_BIT(CW_SIGILL) | SIGNAL_BIT(CW_SIGTRAP) | SIGNAL_BIT(CW_SIGBUS) |          \
	 SIGNAL_BIT(CW_SIGFPE) | SIGNAL_BIT(CW_SIGSEGV))

/* Signals that dump core by default (signal(7)). */
#define DUMPS_CORE                                                                        \
	(FAULTS | SIGNAL_BIT(CW_SIGQUIT) | SIGNAL_BIT(CW_SIGABRT) | SIGNAL_BIT(CW_SIGXCPU) | \
	 SIGNAL_BIT(CW_SIGXFSZ) | SIGNAL_BIT(CW_SIGSYS))

/* <asm-generic/siginfo.h>: si_code of signals that the kernel sends on its own */
#define CW_SI_KERNEL 0x80
#define CW_SI_TIMER (-2)
#define CW_SI_MESGQ (-3)
#define CW_SI_ASYNCIO (-4)
#define CW_SI_SIGIO (-5)

/* <linux/sched/signal.h>: signal_struct.flags, and siginfo pointers that are constants */
#define CW_GROUP_EXIT 0x4
#define CW_UNKILLABLE 0x40
#define CW_SEND_SIG_NOINFO 0
#define CW_SEND_SIG_PRIV 1
/* <trace/events/signal.h>: how signal_generate went */
#define CW_TRACE_DELIVERED 0
#define CW_TRACE_LOSE_INFO 4
/* <uapi/linux/wait.h>: the signal's number in a wait status */
#define STATUS_SIGNAL(status) ((status) & 0x7f)
#define CW_DUMPED 0x80
/* <linux/mm.h> */
#define CW_VM_EXEC 0x4
#define CW_MAPPED_MAX 1024 /* objects of one process that are told */
#define CW_TREE_STEPS (1 << 18)

struct cw_death {
	__u32 pid;
	__u32 reserved;
	__u64 start_ns;
};

/* A walk over the mappings of a process that ends. */
struct cw_walk {
	u64 start_ns;          /* which process */
	u64 root;              /* struct path of its root directory */
	u32 pid;
	u32 told;
	u32 unmapped;          /* enum cw_unmapped */
	u32 reserved;
	struct cw_tree tree;   /* for a walk without the kernel's iterator */
};

/* Its size says which CW_FORMAT the records have. */
struct cw_format {
	__u8 bytes[CW_FORMAT];
};

RING_MAP(ring, CW_RING_BYTES);
ARRAY_MAP(counters, u64, CW_COUNTERS);
ARRAY_MAP(settings, u32, CW_SETTINGS);
ARRAY_MAP(format, struct cw_format, 1);
HASH_MAP(senders, u32, struct cw_sender, CW_PROCESSES);
HASH_MAP(dying, u32, struct cw_dying, CW_PROCESSES);
HASH_MAP(gone, struct cw_death, u8, CW_PROCESSES);
HASH_MAP(process_faults, u32, struct cw_fault, CW_PROCESSES);
TASK_MAP(thread_faults, struct cw_fault);
PER_CPU_MAP(walks, struct cw_walk);

#include "task.bpf.h"
#include "tree.bpf.h"

FN void count(u32 counter)
{
	u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value)
		__sync_fetch_and_add(value, 1);
}

FN u32 setting(u32 which)
{
	u32 *value = bpf_map_lookup_elem(&settings, &which);

	return value ? *value : 0;
}

FN int is_set(u32 which)
{
	return setting(which) != 0;
}

FN int kills_by_default(int signal)
{
	return signal > 0 && signal <= CW_NSIG && !(HARMLESS & SIGNAL_BIT(signal));
}

FN int is_real_info(struct kernel_siginfo *info)
{
	return (unsigned long)info > CW_SEND_SIG_PRIV;
}

FN int by_kernel(int code)
{
	return code > 0 || code == CW_SI_TIMER || code == CW_SI_MESGQ || code == CW_SI_ASYNCIO ||
	       code == CW_SI_SIGIO;
}

FN void fill_sender(struct cw_sender *out, struct cw_who *who, int signal)
{
	u32 pid = who->pid;
	struct cw_sender *sender = bpf_map_lookup_elem(&senders, &pid);

	if (sender && sender->target_start_ns == who->start_ns && sender->signal == signal)
		*out = *sender;
	else
		__builtin_memset(out, 0, sizeof(*out));
}

FN int same_program(struct cw_fault *fault, u64 start_ns, struct task_struct *t)
{
	return fault && fault->start_ns == start_ns && fault->exec_id == READ(t, self_exec_id);
}

/* The fault that this process's handlers saw last. */
FN void fill_process_fault(struct cw_fault *out, struct task_struct *t, u32 pid, u64 start_ns)
{
	struct cw_fault *fault = bpf_map_lookup_elem(&process_faults, &pid);

	if (same_program(fault, start_ns, t))
		*out = *fault;
	else
		__builtin_memset(out, 0, sizeof(*out));
}

FN void fill_event(struct cw_event *event, struct task_struct *t, u32 type, u32 size)
{
	event->type = type;
	event->size = size;
	event->time_ns = bpf_ktime_get_boot_ns();
	fill_who(&event->who, t);
}

#include "share.bpf.h"
#include "killer.bpf.h"
#include "iterators.bpf.h"
#include "armed.bpf.h"

/* For whom the signal is fatal; the task that runs sends it, or the kernel does. */
FN void remember_sender(int signal, struct task_struct *t)
{
	struct task_struct *leader = READ(t, group_leader);
	struct cw_sender sender = {};
	u32 pid = READ(t, tgid);

	sender.target_start_ns = READ(leader, start_boottime);
	sender.pid = bpf_get_current_pid_tgid() >> 32;
	sender.uid = bpf_get_current_uid_gid();
	sender.signal = signal;
	bpf_get_current_comm(sender.comm, sizeof(sender.comm));
	bpf_map_update_elem(&senders, &pid, &sender, BPF_ANY);
}

FN int on_generate(int signal, struct kernel_siginfo *info, struct task_struct *t, int result)
{
	struct sighand_struct *sighand;
	struct signal_struct *group;

	if (!kills_by_default(signal) ||
	    (result != CW_TRACE_DELIVERED && result != CW_TRACE_LOSE_INFO))
		return 0;
	if (is_real_info(info) && by_kernel(READ(info, si_code)))
		return 0;
	sighand = READ(t, sighand);
	if (signal != CW_SIGKILL && READ(sighand, action[(signal - 1) & (CW_NSIG - 1)].sa.sa_handler))
		return 0; /* handled or ignored */
	group = READ(t, signal);
	if (READ(group, core_state))
		return 0; /* it is dead already and dumps its core */
	if (READ(group, flags) & CW_GROUP_EXIT &&
	    STATUS_SIGNAL(READ(group, group_exit_code)) != signal)
		return 0; /* it is dying already, of another one */
	if ((unsigned long)info != CW_SEND_SIG_PRIV)
		remember_sender(signal, t);
	if ((unsigned long)info == CW_SEND_SIG_PRIV ||
	    READ(t, tgid) != bpf_get_current_pid_tgid() >> 32)
		note_killer(signal, info, t);
	return 0;
}

ON_EVENT(signal_generate)
{
	return on_generate(ctx->args[0], (void *)ctx->args[1], (void *)ctx->args[2], ctx->args[4]);
}

/* A handler takes the signal, or nothing happens at all. Keep it if it was a hardware fault. */
FN int note_handled(int signal, struct kernel_siginfo *info, struct task_struct *t)
{
	struct cw_fault fault = {}, *own;
	struct task_struct *leader;
	struct pt_regs *regs;
	u32 pid;
	int code;

	count(CW_HANDLED);
	if (!is_real_info(info) || signal <= 0 || signal > CW_NSIG || !(FAULTS & SIGNAL_BIT(signal)))
		return 0;
	code = READ(info, si_code);
	if (code <= 0 || code == CW_SI_KERNEL)
		return 0;
	leader = READ(t, group_leader);
	regs = (void *)bpf_task_pt_regs(t);
	fault.start_ns = READ(leader, start_boottime);
	fault.exec_id = READ(t, self_exec_id);
	fault.time_ns = bpf_ktime_get_boot_ns();
	fault.addr = (u64)READ(info, _sifields._sigfault._addr);
	fault.ip = READ(regs, ip);
	fault.sp = READ(regs, sp);
	fault.tid = READ(t, pid);
	fault.signal = signal;
	fault.code = code;
	pid = READ(t, tgid);
	bpf_map_update_elem(&process_faults, &pid, &fault, BPF_ANY);
	own = bpf_task_storage_get(&thread_faults, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (own)
		*own = fault;
	return 0;
}

/* The signal that ends the process if `signal` is delivered now; 0 if it is none of our business. */
FN int fatal_signal(int signal, struct task_struct *t)
{
	struct signal_struct *group = READ(t, signal);
	u32 flags = READ(group, flags);

	if ((flags & CW_UNKILLABLE) && signal != CW_SIGKILL)
		return 0;
	if (READ(group, group_exec_task))
		return 0; /* execve ends the other threads */
	if (flags & CW_GROUP_EXIT)
		return STATUS_SIGNAL(READ(group, group_exit_code)); /* 0: exit_group does */
	return signal;
}

/* The first thread of a process that gets here wins; the kernel holds siglock meanwhile. */
FN int is_first(u32 pid, u64 start_ns)
{
	struct cw_dying *seen = bpf_map_lookup_elem(&dying, &pid);

	return !seen || seen->start_ns != start_ns;
}

FN void fill_stack(struct cw_fatal *fatal, u64 sp)
{
	u64 valid = 0;

	for (int page = 0; page < CW_STACK_PAGES; page++) {
		u64 offset = page * CW_PAGE;

		/* Page by page: a page that is absent costs that page, not the stack. */
		if (!bpf_probe_read_user(fatal->stack + offset, CW_PAGE,
					 (void *)(fatal->signal.stack_base + offset)))
			valid |= 1ULL << page;
	}
	fatal->signal.stack_valid = valid;
}

FN void fill_site(struct cw_signal *told, void *ctx)
{
	struct bpf_stack_build_id frame = {};
	long n = bpf_get_stack(ctx, &frame, sizeof(frame), BPF_F_USER_STACK | BPF_F_USER_BUILD_ID);

	told->site_status = n < 0 ? n : frame.status;
	told->site_offset = frame.offset;
	__builtin_memcpy(told->site_build_id, frame.build_id, CW_BUILD_ID);
}

FN void fill_info(struct cw_signal *told, struct task_struct *t, struct kernel_siginfo *info)
{
	struct signal_struct *group = READ(t, signal);

	told->told = 0;
	if (READ(group, rlim[CW_RLIMIT_CORE].rlim_cur) == 1)
		told->told = CW_TOLD_CORE_BYTE;
	if (is_real_info(info) && !bpf_probe_read_kernel(told->info, CW_SIGINFO, info))
		told->told |= CW_TOLD_INFO;
	else
		__builtin_memset(told->info, 0, CW_SIGINFO);
}

/* By a handler of this thread if there was one, else of another. */
FN void fill_thread_fault(struct cw_signal *told, struct task_struct *t)
{
	struct cw_event *event = &told->event;
	struct cw_fault *own = bpf_task_storage_get(&thread_faults, t, 0, 0);

	if (same_program(own, event->who.start_ns, t))
		event->fault = *own;
	else
		fill_process_fault(&event->fault, t, event->who.pid, event->who.start_ns);
}

FN void fill_signal(struct cw_signal *told, void *ctx, struct task_struct *t, int signal,
		    struct kernel_siginfo *info)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(t);

	fill_sender(&told->event.sender, &told->event.who, signal);
	fill_thread_fault(told, t);
	told->signal = signal;
	bpf_probe_read_kernel(told->thread_comm, CW_COMM, ADDRESS(t, comm));
	fill_info(told, t, info);
	bpf_probe_read_kernel(told->regs, CW_PT_REGS * sizeof(u64), regs);
	fill_selectors(told->regs, t);
	told->trap = READ(t, thread.trap_nr);
	told->trap_error = READ(t, thread.error_code);
	told->stack_base = (READ(regs, sp) - CW_RED_ZONE) & ~(u64)(CW_PAGE - 1);
	told->stack_valid = 0;
	fill_site(told, ctx);
}

/* A record with the stack; 0 if the ring has no room. */
FN int tell_big(void *ctx, struct task_struct *t, int signal, struct kernel_siginfo *info)
{
	struct cw_fatal *fatal = bpf_ringbuf_reserve(&ring, sizeof(struct cw_fatal), 0);
	struct pt_regs *regs;

	if (!fatal)
		return 0;
	fill_event(&fatal->signal.event, t, CW_EVENT_FATAL, sizeof(struct cw_fatal));
	fill_signal(&fatal->signal, ctx, t, signal, info);
	regs = (void *)bpf_task_pt_regs(t);
	fill_stack(fatal, READ(regs, sp));
	bpf_ringbuf_submit(fatal, 0);
	return 1;
}

FN int tell_small(void *ctx, struct task_struct *t, int signal, struct kernel_siginfo *info)
{
	struct cw_signal *told = bpf_ringbuf_reserve(&ring, sizeof(struct cw_signal), 0);

	if (!told)
		return 0;
	fill_event(&told->event, t, CW_EVENT_SIGNAL, sizeof(struct cw_signal));
	fill_signal(told, ctx, t, signal, info);
	bpf_ringbuf_submit(told, 0);
	return 1;
}

FN int on_deliver(void *ctx, int signal, struct kernel_siginfo *info, struct k_sigaction *action)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct cw_tally_key kind = {};
	struct task_struct *leader;
	struct cw_dying mark = {};
	u32 pid;

	if (!kills_by_default(signal) || READ(action, sa.sa_handler))
		return note_handled(signal, info, t);
	if (READ(t, flags) & NO_THREAD)
		return 0; /* the kernel's own helper in this process: it has no registers to show */
	signal = fatal_signal(signal, t);
	leader = READ(t, group_leader);
	mark.start_ns = READ(leader, start_boottime);
	pid = READ(t, tgid);
	if (!signal || !is_first(pid, mark.start_ns))
		return 0;
	count(CW_FATAL);
	if (is_real_info(info) && by_kernel(READ(info, si_code)))
		bpf_map_delete_elem(&senders, &pid); /* nobody sent this one */
	kind.signal = signal;
	fill_program(&kind.program, t);
	mark.telling = weigh_armed(&kind.program, pid, mark.start_ns, 1);
	if (mark.telling != CW_TELL_COUNT)
		tell_killer(pid, mark.start_ns, signal, info);
	if (mark.telling == CW_TELL_BIG && !tell_big(ctx, t, signal, info))
		mark.telling = CW_TELL_SMALL;
	if (mark.telling == CW_TELL_SMALL && !tell_small(ctx, t, signal, info))
		mark.telling = CW_TELL_COUNT;
	bpf_map_update_elem(&dying, &pid, &mark, BPF_ANY);
	if (mark.telling != CW_TELL_COUNT)
		return 0;
	tally(&kind, t);
	if (DUMPS_CORE & SIGNAL_BIT(signal) && is_set(CW_HAS_HANDOFF))
		bpf_map_update_elem(&counted, &pid, &mark.start_ns, BPF_ANY);
	return 0;
}

ON_EVENT(signal_deliver)
{
	return on_deliver(ctx, ctx->args[0], (void *)ctx->args[1], (void *)ctx->args[2]);
}

FN void forget(u32 pid)
{
	bpf_map_delete_elem(&senders, &pid);
	bpf_map_delete_elem(&killers, &pid);
	bpf_map_delete_elem(&process_faults, &pid);
	bpf_map_delete_elem(&dying, &pid);
}

/* Exits that are reported: by signal; not 0 if asked for; not 0 after a handled fault. */
FN int is_wanted(struct task_struct *t, u32 status, u32 pid, u64 start_ns)
{
	struct cw_fault *fault;

	struct cw_armed *armed;

	if (!status)
		return 0;
	if (STATUS_SIGNAL(status))
		return 1;
	armed = armed_of(pid, start_ns);
	if (armed && armed->flags & CW_ARMED_EXIT)
		return 1;
	fault = bpf_map_lookup_elem(&process_faults, &pid);
	if (same_program(fault, start_ns, t))
		return 1;
	return is_set(CW_WANT_EXITS);
}

/* 0 if the ring has no room. */
FN int report_exit(struct task_struct *t, u32 status)
{
	struct cw_exit *exit = bpf_ringbuf_reserve(&ring, sizeof(struct cw_exit), 0);
	struct signal_struct *group = READ(t, signal);
	struct cw_walk *walk;
	u32 zero = 0;

	if (!exit)
		return 0;
	fill_event(&exit->event, t, CW_EVENT_EXIT, sizeof(struct cw_exit));
	fill_process_fault(&exit->event.fault, t, exit->event.who.pid, exit->event.who.start_ns);
	if (STATUS_SIGNAL(status))
		fill_sender(&exit->event.sender, &exit->event.who, STATUS_SIGNAL(status));
	else
		__builtin_memset(&exit->event.sender, 0, sizeof(exit->event.sender));
	exit->status = status;
	/* mark_victim names only a thread id before 6.9; this is as old as the OOM reaper */
	exit->oom = STATUS_SIGNAL(status) == CW_SIGKILL && READ(group, oom_mm);
	exit->unmapped = CW_ALL_MAPPED;
	exit->reserved = 0;
	walk = bpf_map_lookup_elem(&walks, &zero); /* of this process, if it ended just now */
	if (walk && walk->pid == exit->event.who.pid && walk->start_ns == exit->event.who.start_ns)
		exit->unmapped = walk->unmapped;
	bpf_ringbuf_submit(exit, 0);
	return 1;
}

/* An exit is told if the signal before it was. One without a signal has a share to use up, too. */
FN void tell_exit(struct task_struct *t, u32 status, u32 pid, u64 start_ns)
{
	struct cw_dying *seen = bpf_map_lookup_elem(&dying, &pid);
	struct cw_tally_key kind = {};
	int told = 0;

	if (seen && seen->start_ns == start_ns) {
		told = seen->telling == CW_TELL_COUNT || report_exit(t, status);
		if (!told)
			count(CW_DROPPED_EXIT); /* its signal is in the ring */
		return;
	}
	kind.signal = STATUS_SIGNAL(status);
	fill_program(&kind.program, t);
	if (weigh_armed(&kind.program, pid, start_ns, 0) != CW_TELL_COUNT)
		told = report_exit(t, status);
	if (!told)
		tally(&kind, t);
}

FN int on_exit(struct task_struct *t)
{
	struct signal_struct *group = READ(t, signal);
	struct cw_death death = {};
	struct task_struct *leader;
	u32 pid, status;
	u8 yes = 1;

	if (READ(group, live.counter))
		return 0; /* not the last thread; of thousands, so nothing is read before */
	leader = READ(t, group_leader);
	pid = READ(t, tgid);
	status = READ(group, flags) & CW_GROUP_EXIT ? READ(group, group_exit_code) :
						      READ(leader, exit_code);
	death.pid = pid;
	death.start_ns = READ(leader, start_boottime);
	if (is_wanted(t, status, pid, death.start_ns)) {
		/* Two threads that leave at once may both see that none lives: only one inserts. */
		if (bpf_map_update_elem(&gone, &death, &yes, BPF_NOEXIST))
			return 0;
		tell_exit(t, status, pid, death.start_ns);
	}
	forget(pid);
	return 0;
}

ON_EVENT(sched_process_exit)
{
	tell_armed();
	return on_exit((void *)ctx->args[0]);
}

/*
 * Before 6.16 that event comes when the address space is gone, and with it the path of the
 * executable. This function is called just before; what is told here is not told again. The
 * loader attaches it where it can, and where it is of use.
 */
ON_LEAVING(leave)
{
	tell_armed();
	return on_exit((void *)ctx[0]);
}

#ifndef COREWARD_BCC

/* The objects that a process has mapped, told when it ends without having been handed over: only
 * so can the stack of its fatal signal be unwound afterwards. Needs the iterator of >= 6.7 (no
 * kernel functions under bcc), and the address space: see above. Without them there is just no
 * backtrace. */
extern int bpf_iter_task_vma_new(struct bpf_iter_task_vma *it, struct task_struct *task,
				 u64 addr) __ksym __weak;
extern struct vm_area_struct *bpf_iter_task_vma_next(struct bpf_iter_task_vma *it) __ksym __weak;
extern void bpf_iter_task_vma_destroy(struct bpf_iter_task_vma *it) __ksym __weak;

/* Of a file the mapping of its begin, with its headers, and those of code. */
FN int is_worth_telling(struct vm_area_struct *vma)
{
	return READ(vma, vm_file) && (!READ(vma, vm_pgoff) || READ(vma, vm_flags) & CW_VM_EXEC);
}

FN void report_mapped(struct vm_area_struct *vma, u32 pid, u64 start_ns, struct path *root)
{
	struct file *file = READ(vma, vm_file);
	struct path *path = file_user_path(file);
	struct cw_mapped *out;

	out = bpf_ringbuf_reserve(&ring, sizeof(*out), 0);
	if (!out) {
		count(CW_DROPPED_MAPPED);
		return;
	}
	out->type = CW_EVENT_MAPPED;
	out->size = sizeof(*out);
	out->time_ns = bpf_ktime_get_boot_ns();
	out->start_ns = start_ns;
	out->pid = pid;
	out->start = READ(vma, vm_start);
	out->end = READ(vma, vm_end);
	out->offset = READ(vma, vm_pgoff) * CW_PAGE;
	out->vm_flags = READ(vma, vm_flags);
	out->reserved = 0;
	if (!path)
		path = (struct path *)ADDRESS(file, f_path);
	out->path_len = copy_path((struct cw_path *)out->path, (u64)READ(path, dentry),
				  (u64)READ(path, mnt), (u64)root);
	/* Not without waking: a later record wakes only a reader that has read all before it. */
	bpf_ringbuf_submit(out, 0);
}

/* The walk over the mappings of the process that ends, ready to begin; 0 if it tells none. */
FN struct cw_walk *begin_walk(struct task_struct *t)
{
	struct signal_struct *group = READ(t, signal);
	struct task_struct *leader;
	struct fs_struct *fs;
	struct cw_walk *walk;
	struct cw_dying *seen;
	u32 status, zero = 0;

	if (READ(group, live.counter))
		return 0;
	status = READ(group, group_exit_code);
	if (!STATUS_SIGNAL(status) || ((status & CW_DUMPED) && is_set(CW_HAS_HANDOFF)))
		return 0;
	walk = bpf_map_lookup_elem(&walks, &zero);
	if (!walk)
		return 0;
	leader = READ(t, group_leader);
	fs = READ(t, fs);
	walk->start_ns = READ(leader, start_boottime);
	walk->root = fs ? (u64)ADDRESS(fs, root) : 0;
	walk->pid = READ(t, tgid);
	walk->told = 0; /* in a map, where the verifier does not count along */
	walk->unmapped = CW_ALL_MAPPED;
	seen = bpf_map_lookup_elem(&dying, &walk->pid);
	return seen && seen->start_ns == walk->start_ns && seen->telling == CW_TELL_BIG ? walk : 0;
}

/* Tell one mapping if it matters; 0: no more are told. */
FN int step_on(struct cw_walk *walk, struct vm_area_struct *vma)
{
	if (!is_worth_telling(vma))
		return 1;
	if (++walk->told > CW_MAPPED_MAX) {
		walk->unmapped = CW_UNMAPPED_MANY;
		return 0;
	}
	/* A backtrace is worth less than another death: in a storm these would fill the ring. */
	if (WAITING_BYTES(ring) > CW_RING_BIG) {
		count(CW_DROPPED_MAPPED);
		walk->unmapped = CW_UNMAPPED_RING;
		return 0;
	}
	report_mapped(vma, walk->pid, walk->start_ns, (struct path *)walk->root);
	return 1;
}

FN void tell_mappings(struct task_struct *t)
{
	struct cw_walk *walk = begin_walk(t);
	struct bpf_iter_task_vma it;
	struct vm_area_struct *vma;

	if (!walk)
		return;
	bpf_iter_task_vma_new(&it, t, 0);
	while ((vma = bpf_iter_task_vma_next(&it))) {
		if (!step_on(walk, vma))
			break;
	}
	bpf_iter_task_vma_destroy(&it);
}

/*
 * The same before 6.7, by hand: see tree.bpf.h. One slot in each step.
 */
static long step_in_tree(u32 index, void *unused)
{
	struct vm_area_struct *vma = 0;
	u32 zero = 0;
	struct cw_walk *walk = bpf_map_lookup_elem(&walks, &zero);

	if (!walk)
		return 1;
	if (!step_tree(&walk->tree, &vma))
		return 1;
	return vma && !step_on(walk, vma);
}

FN void tell_mappings_of_tree(struct task_struct *t)
{
	struct cw_walk *walk = begin_walk(t);
	struct mm_struct *mm;

	if (!walk)
		return;
	mm = READ(t, mm);
	begin_tree(&walk->tree, mm);
	if (bpf_loop(CW_TREE_STEPS, step_in_tree, 0, 0) == CW_TREE_STEPS)
		walk->unmapped = CW_UNMAPPED_MANY;
}

SEC("raw_tp/sched_process_exit") int exit_mappings(struct bpf_raw_tracepoint_args *ctx)
{
	tell_mappings(bpf_get_current_task_btf());
	return 0;
}

ON_LEAVING(leave_mapped)
{
	tell_armed();
	tell_mappings(bpf_get_current_task_btf());
	return on_exit(bpf_get_current_task_btf());
}

ON_LEAVING(leave_walked)
{
	tell_armed();
	tell_mappings_of_tree(bpf_get_current_task_btf());
	return on_exit(bpf_get_current_task_btf());
}

#endif

#include "oom.bpf.h"

ON_EVENT(mark_victim)
{
	return on_victim(ctx->args[0]);
}
