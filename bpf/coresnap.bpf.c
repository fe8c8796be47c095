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
#include "coresnap.h"

/* <asm/signal.h>; not in BTF */
#define CS_SIGILL 4
#define CS_SIGTRAP 5
#define CS_SIGBUS 7
#define CS_SIGFPE 8
#define CS_SIGKILL 9
#define CS_SIGSEGV 11
#define CS_SIGCHLD 17
#define CS_SIGCONT 18
#define CS_SIGSTOP 19
#define CS_SIGTSTP 20
#define CS_SIGTTIN 21
#define CS_SIGTTOU 22
#define CS_SIGURG 23
#define CS_SIGWINCH 28
#define CS_SIGSYS 31
#define CS_NSIG 64
#define SIGNAL_BIT(n) (1ULL << ((n) - 1))

/* Signals whose default does not kill. */
#define HARMLESS                                                                          \
	(SIGNAL_BIT(CS_SIGCHLD) | SIGNAL_BIT(CS_SIGCONT) | SIGNAL_BIT(CS_SIGURG) |         \
	 SIGNAL_BIT(CS_SIGWINCH) | SIGNAL_BIT(CS_SIGSTOP) | SIGNAL_BIT(CS_SIGTSTP) |       \
	 SIGNAL_BIT(CS_SIGTTIN) | SIGNAL_BIT(CS_SIGTTOU))
/* Signals by which the hardware complains. */
#define FAULTS                                                                            \
	(SIGNAL_BIT(CS_SIGILL) | SIGNAL_BIT(CS_SIGTRAP) | SIGNAL_BIT(CS_SIGBUS) |          \
	 SIGNAL_BIT(CS_SIGFPE) | SIGNAL_BIT(CS_SIGSEGV))

/* <asm-generic/siginfo.h>: si_code of signals that the kernel sends on its own */
#define CS_SI_KERNEL 0x80
#define CS_SI_TIMER (-2)
#define CS_SI_MESGQ (-3)
#define CS_SI_ASYNCIO (-4)
#define CS_SI_SIGIO (-5)

/* <linux/sched/signal.h>: signal_struct.flags, and siginfo pointers that are constants */
#define CS_GROUP_EXIT 0x4
#define CS_UNKILLABLE 0x40
#define CS_SEND_SIG_NOINFO 0
#define CS_SEND_SIG_PRIV 1
/* <trace/events/signal.h>: how signal_generate went */
#define CS_TRACE_DELIVERED 0
#define CS_TRACE_LOSE_INFO 4
/* <uapi/linux/wait.h>: the signal's number in a wait status */
#define STATUS_SIGNAL(status) ((status) & 0x7f)
#define CS_DUMPED 0x80
/* <linux/mm.h> */
#define CS_VM_EXEC 0x4
#define CS_MAPPED_MAX 256 /* objects of one process that are told */
/* <linux/maple_tree.h>: slots of a node; a tree of mappings with 65,530 leaves is 4 deep */
#define CS_RANGE_SLOTS 16
#define CS_ARANGE_SLOTS 10
#define CS_TREE_DEPTH 8
#define CS_TREE_STEPS 4096

struct cs_death {
	__u32 pid;
	__u32 reserved;
	__u64 start_ns;
};

/* A walk over the mappings of a process that ends. */
struct cs_walk {
	u64 start_ns;          /* which process */
	u64 root;              /* struct path of its root directory */
	u32 pid;
	u32 told;
	u64 mm;                /* what follows is for a walk without the kernel's iterator */
	u64 depth;
	u64 nodes[CS_TREE_DEPTH];
	u32 slots[CS_TREE_DEPTH]; /* the next one of each node */
};

/* Its size says which CS_FORMAT the records have. */
struct cs_format {
	__u8 bytes[CS_FORMAT];
};

RING_MAP(ring, CS_RING_BYTES);
ARRAY_MAP(counters, u64, CS_COUNTERS);
ARRAY_MAP(settings, u32, CS_SETTINGS);
ARRAY_MAP(format, struct cs_format, 1);
HASH_MAP(senders, u32, struct cs_sender, CS_PROCESSES);
HASH_MAP(dying, u32, u64, CS_PROCESSES);
HASH_MAP(gone, struct cs_death, u8, CS_PROCESSES);
HASH_MAP(process_faults, u32, struct cs_fault, CS_PROCESSES);
TASK_MAP(thread_faults, struct cs_fault);
PER_CPU_MAP(walks, struct cs_walk);

#include "task.bpf.h"

FN void count(u32 counter)
{
	u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value)
		__sync_fetch_and_add(value, 1);
}

FN int is_set(u32 setting)
{
	u32 *value = bpf_map_lookup_elem(&settings, &setting);

	return value && *value;
}

FN int kills_by_default(int signal)
{
	return signal > 0 && signal <= CS_NSIG && !(HARMLESS & SIGNAL_BIT(signal));
}

FN int is_real_info(struct kernel_siginfo *info)
{
	return (unsigned long)info > CS_SEND_SIG_PRIV;
}

FN int by_kernel(int code)
{
	return code > 0 || code == CS_SI_TIMER || code == CS_SI_MESGQ || code == CS_SI_ASYNCIO ||
	       code == CS_SI_SIGIO;
}

FN void fill_sender(struct cs_sender *out, struct cs_who *who, int signal)
{
	u32 pid = who->pid;
	struct cs_sender *sender = bpf_map_lookup_elem(&senders, &pid);

	if (sender && sender->target_start_ns == who->start_ns && sender->signal == signal)
		*out = *sender;
	else
		__builtin_memset(out, 0, sizeof(*out));
}

FN int same_program(struct cs_fault *fault, u64 start_ns, struct task_struct *t)
{
	return fault && fault->start_ns == start_ns && fault->exec_id == READ(t, self_exec_id);
}

/* The fault that this process's handlers saw last. */
FN void fill_process_fault(struct cs_fault *out, struct task_struct *t, u32 pid, u64 start_ns)
{
	struct cs_fault *fault = bpf_map_lookup_elem(&process_faults, &pid);

	if (same_program(fault, start_ns, t))
		*out = *fault;
	else
		__builtin_memset(out, 0, sizeof(*out));
}

FN void fill_event(struct cs_event *event, struct task_struct *t, u32 type, u32 size)
{
	event->type = type;
	event->size = size;
	event->time_ns = bpf_ktime_get_boot_ns();
	fill_who(&event->who, t);
}

FN int remember_sender(int signal, struct kernel_siginfo *info, struct task_struct *t, int result)
{
	struct cs_sender sender = {};
	struct sighand_struct *sighand;
	struct signal_struct *group;
	struct task_struct *leader;
	u32 pid;

	if (!kills_by_default(signal) ||
	    (result != CS_TRACE_DELIVERED && result != CS_TRACE_LOSE_INFO))
		return 0;
	if ((unsigned long)info == CS_SEND_SIG_PRIV ||
	    (is_real_info(info) && by_kernel(READ(info, si_code))))
		return 0;
	sighand = READ(t, sighand);
	if (signal != CS_SIGKILL && READ(sighand, action[(signal - 1) & (CS_NSIG - 1)].sa.sa_handler))
		return 0; /* handled or ignored */
	group = READ(t, signal);
	if (READ(group, core_state))
		return 0; /* it is dead already and dumps its core */
	leader = READ(t, group_leader);
	pid = READ(t, tgid);
	sender.target_start_ns = READ(leader, start_boottime);
	sender.pid = bpf_get_current_pid_tgid() >> 32;
	sender.uid = bpf_get_current_uid_gid();
	sender.signal = signal;
	bpf_get_current_comm(sender.comm, sizeof(sender.comm));
	bpf_map_update_elem(&senders, &pid, &sender, BPF_ANY);
	return 0;
}

ON_EVENT(signal_generate)
{
	return remember_sender(ctx->args[0], (void *)ctx->args[1], (void *)ctx->args[2], ctx->args[4]);
}

/* A handler takes the signal, or nothing happens at all. Keep it if it was a hardware fault. */
FN int note_handled(int signal, struct kernel_siginfo *info, struct task_struct *t)
{
	struct cs_fault fault = {}, *own;
	struct task_struct *leader;
	struct pt_regs *regs;
	u32 pid;
	int code;

	count(CS_HANDLED);
	if (!is_real_info(info) || signal <= 0 || signal > CS_NSIG || !(FAULTS & SIGNAL_BIT(signal)))
		return 0;
	code = READ(info, si_code);
	if (code <= 0 || code == CS_SI_KERNEL)
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

	if ((flags & CS_UNKILLABLE) && signal != CS_SIGKILL)
		return 0;
	if (READ(group, group_exec_task))
		return 0; /* execve ends the other threads */
	if (flags & CS_GROUP_EXIT)
		return STATUS_SIGNAL(READ(group, group_exit_code)); /* 0: exit_group does */
	return signal;
}

/* The first thread of a process that gets here wins; the kernel holds siglock meanwhile. */
FN int is_first(struct task_struct *t)
{
	struct task_struct *leader = READ(t, group_leader);
	u64 start_ns = READ(leader, start_boottime);
	u32 pid = READ(t, tgid);
	u64 *seen = bpf_map_lookup_elem(&dying, &pid);

	if (seen && *seen == start_ns)
		return 0;
	bpf_map_update_elem(&dying, &pid, &start_ns, BPF_ANY);
	return 1;
}

FN void fill_stack(struct cs_fatal *fatal, u64 sp)
{
	u64 valid = 0;

	fatal->stack_base = (sp - CS_RED_ZONE) & ~(u64)(CS_PAGE - 1);
	for (int page = 0; page < CS_STACK_PAGES; page++) {
		u64 offset = page * CS_PAGE;

		/* Page by page: a page that is absent costs that page, not the stack. */
		if (!bpf_probe_read_user(fatal->stack + offset, CS_PAGE,
					 (void *)(fatal->stack_base + offset)))
			valid |= 1ULL << page;
	}
	fatal->stack_valid = valid;
}

FN void fill_site(struct cs_fatal *fatal, void *ctx)
{
	struct bpf_stack_build_id frame = {};
	long n = bpf_get_stack(ctx, &frame, sizeof(frame), BPF_F_USER_STACK | BPF_F_USER_BUILD_ID);

	fatal->site_status = n < 0 ? n : frame.status;
	fatal->site_offset = frame.offset;
	__builtin_memcpy(fatal->site_build_id, frame.build_id, CS_BUILD_ID);
}

FN void fill_info(struct cs_fatal *fatal, struct kernel_siginfo *info)
{
	fatal->has_info = is_real_info(info) &&
			  !bpf_probe_read_kernel(fatal->info, CS_SIGINFO, info);
	if (!fatal->has_info)
		__builtin_memset(fatal->info, 0, CS_SIGINFO);
}

/* By a handler of this thread if there was one, else of another. */
FN void fill_thread_fault(struct cs_fatal *fatal, struct task_struct *t)
{
	struct cs_event *event = &fatal->event;
	struct cs_fault *own = bpf_task_storage_get(&thread_faults, t, 0, 0);

	if (same_program(own, event->who.start_ns, t))
		event->fault = *own;
	else
		fill_process_fault(&event->fault, t, event->who.pid, event->who.start_ns);
}

FN int on_deliver(void *ctx, int signal, struct kernel_siginfo *info, struct k_sigaction *action)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct pt_regs *regs;
	struct cs_fatal *fatal;
	u32 pid;

	if (!kills_by_default(signal) || READ(action, sa.sa_handler))
		return note_handled(signal, info, t);
	if (READ(t, flags) & NO_THREAD)
		return 0; /* the kernel's own helper in this process: it has no registers to show */
	signal = fatal_signal(signal, t);
	if (!signal || !is_first(t))
		return 0;
	count(CS_FATAL);
	if (is_real_info(info) && by_kernel(READ(info, si_code))) {
		pid = READ(t, tgid);
		bpf_map_delete_elem(&senders, &pid); /* nobody sent this one */
	}
	fatal = bpf_ringbuf_reserve(&ring, sizeof(struct cs_fatal), 0);
	if (!fatal) {
		count(CS_DROPPED_DELIVER);
		return 0;
	}
	fill_event(&fatal->event, t, CS_EVENT_FATAL, sizeof(struct cs_fatal));
	fill_sender(&fatal->event.sender, &fatal->event.who, signal);
	fill_thread_fault(fatal, t);
	fatal->signal = signal;
	bpf_probe_read_kernel(fatal->thread_comm, CS_COMM, ADDRESS(t, comm));
	fill_info(fatal, info);
	regs = (void *)bpf_task_pt_regs(t);
	bpf_probe_read_kernel(fatal->regs, CS_PT_REGS * sizeof(u64), regs);
	fill_selectors(fatal->regs, t);
	fatal->trap = READ(t, thread.trap_nr);
	fatal->trap_error = READ(t, thread.error_code);
	fill_stack(fatal, READ(regs, sp));
	fill_site(fatal, ctx);
	bpf_ringbuf_submit(fatal, 0);
	return 0;
}

ON_EVENT(signal_deliver)
{
	return on_deliver(ctx, ctx->args[0], (void *)ctx->args[1], (void *)ctx->args[2]);
}

FN void forget(u32 pid)
{
	bpf_map_delete_elem(&senders, &pid);
	bpf_map_delete_elem(&process_faults, &pid);
	bpf_map_delete_elem(&dying, &pid);
}

/* Exits that are reported: by signal; not 0 if asked for; not 0 after a handled fault. */
FN int is_wanted(struct task_struct *t, u32 status, u32 pid, u64 start_ns)
{
	struct cs_fault *fault;

	if (!status)
		return 0;
	if (STATUS_SIGNAL(status))
		return 1;
	fault = bpf_map_lookup_elem(&process_faults, &pid);
	if (same_program(fault, start_ns, t))
		return 1;
	return is_set(CS_WANT_EXITS);
}

FN void report_exit(struct task_struct *t, u32 status)
{
	struct cs_exit *exit = bpf_ringbuf_reserve(&ring, sizeof(struct cs_exit), 0);
	struct signal_struct *group = READ(t, signal);

	if (!exit) {
		count(CS_DROPPED_EXIT);
		return;
	}
	fill_event(&exit->event, t, CS_EVENT_EXIT, sizeof(struct cs_exit));
	fill_process_fault(&exit->event.fault, t, exit->event.who.pid, exit->event.who.start_ns);
	if (STATUS_SIGNAL(status))
		fill_sender(&exit->event.sender, &exit->event.who, STATUS_SIGNAL(status));
	else
		__builtin_memset(&exit->event.sender, 0, sizeof(exit->event.sender));
	exit->status = status;
	/* mark_victim names only a thread id before 6.9; this is as old as the OOM reaper */
	exit->oom = STATUS_SIGNAL(status) == CS_SIGKILL && READ(group, oom_mm);
	bpf_ringbuf_submit(exit, 0);
}

FN int on_exit(struct task_struct *t)
{
	struct signal_struct *group = READ(t, signal);
	struct cs_death death = {};
	struct task_struct *leader;
	u32 pid, status;
	u8 yes = 1;

	if (READ(group, live.counter))
		return 0; /* not the last thread; of thousands, so nothing is read before */
	leader = READ(t, group_leader);
	pid = READ(t, tgid);
	status = READ(group, flags) & CS_GROUP_EXIT ? READ(group, group_exit_code) :
						      READ(leader, exit_code);
	death.pid = pid;
	death.start_ns = READ(leader, start_boottime);
	if (is_wanted(t, status, pid, death.start_ns)) {
		/* Two threads that leave at once may both see that none lives: only one inserts. */
		if (bpf_map_update_elem(&gone, &death, &yes, BPF_NOEXIST))
			return 0;
		report_exit(t, status);
	}
	forget(pid);
	return 0;
}

ON_EVENT(sched_process_exit)
{
	return on_exit((void *)ctx->args[0]);
}

/*
 * Before 6.16 that event comes when the address space is gone, and with it the path of the
 * executable. This function is called just before; what is told here is not told again. The
 * loader attaches it where it can, and where it is of use.
 */
ON_LEAVING(leave)
{
	return on_exit((void *)ctx[0]);
}

#ifndef CORESNAP_BCC

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
	return READ(vma, vm_file) && (!READ(vma, vm_pgoff) || READ(vma, vm_flags) & CS_VM_EXEC);
}

FN void report_mapped(struct vm_area_struct *vma, u32 pid, u64 start_ns, struct path *root)
{
	struct file *file = READ(vma, vm_file);
	struct path *path = READ(file, f_mode) & BACKING_FILE ? file_user_path(file) : 0;
	struct cs_mapped *out;

	out = bpf_ringbuf_reserve(&ring, sizeof(*out), 0);
	if (!out) {
		count(CS_DROPPED_MAPPED);
		return;
	}
	out->type = CS_EVENT_MAPPED;
	out->size = sizeof(*out);
	out->time_ns = bpf_ktime_get_boot_ns();
	out->start_ns = start_ns;
	out->pid = pid;
	out->start = READ(vma, vm_start);
	out->end = READ(vma, vm_end);
	out->offset = READ(vma, vm_pgoff) * CS_PAGE;
	out->vm_flags = READ(vma, vm_flags);
	out->reserved = 0;
	if (!path)
		path = (struct path *)ADDRESS(file, f_path);
	out->path_len = copy_path((struct cs_path *)out->path, (u64)READ(path, dentry),
				  (u64)READ(path, mnt), (u64)root);
	/* Not without waking: a later record wakes only a reader that has read all before it. */
	bpf_ringbuf_submit(out, 0);
}

/* The walk over the mappings of the process that ends, ready to begin; 0 if it tells none. */
FN struct cs_walk *begin_walk(struct task_struct *t)
{
	struct signal_struct *group = READ(t, signal);
	struct task_struct *leader;
	struct fs_struct *fs;
	struct cs_walk *walk;
	u32 status, zero = 0;
	u64 *seen;

	if (READ(group, live.counter))
		return 0;
	status = READ(group, group_exit_code);
	if (!STATUS_SIGNAL(status) || ((status & CS_DUMPED) && is_set(CS_HAS_HANDOFF)))
		return 0;
	walk = bpf_map_lookup_elem(&walks, &zero);
	if (!walk)
		return 0;
	/* A backtrace is worth less than another death: in a storm these would fill the ring. */
	if (bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) > CS_RING_BYTES / 2) {
		count(CS_DROPPED_MAPPED);
		return 0;
	}
	leader = READ(t, group_leader);
	fs = READ(t, fs);
	walk->start_ns = READ(leader, start_boottime);
	walk->root = fs ? (u64)ADDRESS(fs, root) : 0;
	walk->pid = READ(t, tgid);
	walk->told = 0; /* in a map, where the verifier does not count along */
	seen = bpf_map_lookup_elem(&dying, &walk->pid);
	return seen && *seen == walk->start_ns ? walk : 0;
}

/* Tell one mapping if it matters; 0: no more are told. */
FN int step_on(struct cs_walk *walk, struct vm_area_struct *vma)
{
	if (!is_worth_telling(vma))
		return 1;
	if (++walk->told > CS_MAPPED_MAX)
		return 0;
	report_mapped(vma, walk->pid, walk->start_ns, (struct path *)walk->root);
	return 1;
}

FN void tell_mappings(struct task_struct *t)
{
	struct cs_walk *walk = begin_walk(t);
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
 * The same before 6.7, by hand: the mappings are the leaves of a maple tree, whose nodes are named
 * by pointers with their type in the low bits (<linux/maple_tree.h>, lib/maple_tree.c). Slots that
 * are not in use hold no pointer to the kernel. One slot in each step, depth first.
 */
#define NODE_OF(entry) ((entry) & ~255ULL)
#define NODE_TYPE(entry) ((entry) >> 3 & 15)

static long step_in_tree(u32 index, void *unused)
{
	u64 depth, entry, child = 0;
	u32 slot, slots, zero = 0;
	struct cs_walk *walk = bpf_map_lookup_elem(&walks, &zero);

	if (!walk)
		return 1;
	depth = walk->depth;
	if (depth >= CS_TREE_DEPTH)
		return 1;
	entry = walk->nodes[depth];
	slot = walk->slots[depth]++;
	slots = NODE_TYPE(entry) == maple_arange_64 ? CS_ARANGE_SLOTS : CS_RANGE_SLOTS;
	if (slot >= slots) {
		walk->depth = depth - 1; /* below 0 it is larger than any depth: the end */
		return 0;
	}
	bpf_probe_read_kernel(&child, sizeof(child), (void *)(NODE_OF(entry) + slot * sizeof(child) +
		(NODE_TYPE(entry) == maple_arange_64 ? OFFSET_OF(struct maple_node, ma64.slot) :
						       OFFSET_OF(struct maple_node, mr64.slot))));
	if (!IS_KERNEL_POINTER(child))
		return 0;
	if (NODE_TYPE(entry) == maple_leaf_64)
		return READ((struct vm_area_struct *)child, vm_mm) == (void *)walk->mm &&
		       !step_on(walk, (struct vm_area_struct *)child);
	depth++;
	if (depth >= CS_TREE_DEPTH)
		return 1;
	walk->nodes[depth] = child;
	walk->slots[depth] = 0;
	walk->depth = depth;
	return 0;
}

FN void tell_mappings_of_tree(struct task_struct *t)
{
	struct cs_walk *walk = begin_walk(t);
	struct mm_struct *mm;

	if (!walk)
		return;
	mm = READ(t, mm);
	walk->mm = (u64)mm;
	walk->depth = 0;
	walk->nodes[0] = (u64)READ(mm, mm_mt.ma_root);
	walk->slots[0] = 0;
	bpf_loop(CS_TREE_STEPS, step_in_tree, 0, 0);
}

SEC("raw_tp/sched_process_exit") int exit_mappings(struct bpf_raw_tracepoint_args *ctx)
{
	tell_mappings(bpf_get_current_task_btf());
	return 0;
}

ON_LEAVING(leave_mapped)
{
	tell_mappings(bpf_get_current_task_btf());
	return on_exit(bpf_get_current_task_btf());
}

ON_LEAVING(leave_walked)
{
	tell_mappings_of_tree(bpf_get_current_task_btf());
	return on_exit(bpf_get_current_task_btf());
}

#endif

FN int on_victim(u64 victim)
{
	struct cs_event *event;

	if (!IS_KERNEL_POINTER(victim))
		return 0; /* the exit tells it */
	event = bpf_ringbuf_reserve(&ring, sizeof(struct cs_event), 0);
	if (!event) {
		count(CS_DROPPED_OOM);
		return 0;
	}
	fill_event(event, (void *)victim, CS_EVENT_OOM, sizeof(struct cs_event));
	__builtin_memset(&event->sender, 0, sizeof(event->sender));
	__builtin_memset(&event->fault, 0, sizeof(event->fault));
	bpf_ringbuf_submit(event, 0);
	return 0;
}

ON_EVENT(mark_victim)
{
	return on_victim(ctx->args[0]);
}

#include "iterators.bpf.h"
