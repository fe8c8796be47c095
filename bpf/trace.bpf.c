// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/*
 * System calls, signals, forks, execs and exits of the threads that are traced, and of their
 * children. Attached only while somebody is traced: a thread that is not costs a look into its task
 * storage at each call.
 *
 * A thread is traced when it has a value in the map `traced`. The iterator `arm` makes it for the
 * threads of a process, and task_newtask for each child, before it runs. In the mode `live` each
 * event goes to the ring; in the mode `record` a thread keeps its last calls in its own storage.
 * What had no room is counted in the thread, and told with its next event.
 *
 * Programs on sys_enter and sys_exit run with preemption off and are not nested, so a thread's
 * storage has one writer; only `lost` is also counted by those who send it a signal.
 *
 * Linux >= 6.1, x86-64, for libbpf alone: bcc has no tp_btf, which gives tasks that storage can be
 * asked of.
 */
#include "compat.h"
#include "trace.h"

/* <linux/sched.h> */
#define CW_PF_EXITING 0x4
#define CW_PF_IO_WORKER 0x10
#define CW_PF_USER_WORKER 0x4000
#define CW_PF_KTHREAD 0x200000
#define NEVER_TRACED (CW_PF_EXITING | CW_PF_IO_WORKER | CW_PF_USER_WORKER | CW_PF_KTHREAD)
/* <asm/thread_info.h> */
#define CW_TS_COMPAT 0x2
/* <asm/unistd_64.h> */
#define CW_NR_EXECVE 59
#define CW_NR_EXECVEAT 322
/* <asm/signal.h>, <asm-generic/siginfo.h>, <trace/events/signal.h>, <linux/sched/signal.h> */
#define CW_SIGKILL 9
#define CW_SIGCONT 18
#define CW_SIGSTOP 19
#define CW_SEND_SIG_PRIV 1
#define CW_TRACE_SIGNAL_IGNORED 1
#define CW_GROUP_EXIT 0x4
#define STATUS_BITS 0xffff
#define STATUS_SIGNAL 0x7f

/* Of <linux/binfmts.h>, what is read of it. */
struct linux_binprm___path {
	const char *filename;
} __attribute__((preserve_access_index));

enum state {
	IN_CALL = 1,
	UNWANTED = 2,          /* in a call that the filter leaves out */
	BORN = 4,              /* it has not come back from the call that made it */
	FROM_EXEC = 8,         /* nothing is told before its next execve */
	HAS_EXECED = 16,       /* in the present call: addresses mean something else now */
	STOPPING = 32,         /* by us, to wait for the reader */
};

struct cw_traced {
	u64 made;
	u64 lost_calls;
	u32 lost;
	u32 state;
	struct cw_trace_call now; /* the present call; the last one if it is in none */
};

struct cw_texts {
	struct cw_trace_call told; /* a copy of cw_traced.now, so that the texts follow it */
	u8 bytes[CW_TEXT_ROOM];
	u64 used;
};

struct cw_exec_room {
	struct cw_trace_exec exec;
	u8 texts[2 * CW_TEXT];
};

TASK_MAP(traced, struct cw_traced);
TASK_MAP(texts, struct cw_texts);
TASK_MAP(kept, struct cw_kept);
TASK_MAP(kept_texts, struct cw_all_texts);
ARRAY_MAP(rules, struct cw_trace_rule, CW_TRACE_RULES);
ARRAY_MAP(shapes, struct cw_call_shape, 2 * CW_CALL_NUMBERS);
ARRAY_MAP(arming, struct cw_arming, 1);
ARRAY_MAP(trace_counters, u64, CW_TRACE_COUNTERS);
KEPT_MAP(stopped, u32, u64, CW_STOPPED);
KEPT_MAP(untold, u32, struct cw_untold, CW_UNTOLD);
PER_CPU_MAP(exec_room, struct cw_exec_room);
RING_MAP(ring, CW_TRACE_RING);

FN void count(u32 counter)
{
	u64 *value = bpf_map_lookup_elem(&trace_counters, &counter);

	if (value)
		__sync_fetch_and_add(value, 1);
}

FN struct cw_trace_rule *rule_of(struct cw_traced *own)
{
	u32 number = own->now.event.rule;
	struct cw_trace_rule *rule = bpf_map_lookup_elem(&rules, &number);

	return rule && rule->mode ? rule : 0;
}

FN void fill_event(struct cw_trace_event *event, struct cw_traced *own, struct task_struct *t,
		   u32 type, u32 size)
{
	event->type = type;
	event->size = size;
	event->time_ns = bpf_ktime_get_boot_ns();
	event->tid = t->pid;
	event->tgid = t->tgid;
	event->rule = own->now.event.rule;
	event->lost = 0;
}

FN u64 waiting(void)
{
	return bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA);
}

/* Whoever tells of losses takes them over; they are given back if that record is lost, too. */
FN void take_lost(struct cw_trace_event *event, struct cw_traced *own)
{
	event->lost = own->lost ? __sync_lock_test_and_set(&own->lost, 0) : 0;
}

FN void lose(struct cw_trace_event *event, struct cw_traced *own)
{
	__sync_fetch_and_add(&own->lost, event->lost + 1);
}

/* Readers look every few milliseconds anyway. To wake one costs more than a hundred records, so it
 * is done once for so many bytes. */
#define WAKE_BYTES (64 << 10)

FN u64 wake_up(u64 before, u64 more)
{
	return before / WAKE_BYTES == (before + more) / WAKE_BYTES ? BPF_RB_NO_WAKEUP :
								     BPF_RB_FORCE_WAKEUP;
}

/* Events that are not calls may use the room that calls leave. */
#define TELL(own, record, bytes) \
	({ \
		take_lost(&(record)->event, own); \
		if (bpf_ringbuf_output(&ring, record, bytes, BPF_RB_FORCE_WAKEUP)) \
			lose(&(record)->event, own); \
	})

/* -- the texts of a call ------------------------------------------------------------------- */

/* How long a buffer is; a negative result is no length. */
FN u64 length_of(struct cw_call *call, u8 kind, u8 fixed)
{
	if (kind == CW_LENGTH_FIXED)
		return fixed;
	if (kind == CW_LENGTH_RESULT)
		return call->result < 0 ? 0 : call->result;
	return kind < CW_CALL_ARGS ? call->args[kind] : 0;
}

FN void copy_text(struct cw_texts *all, struct cw_call *call, struct cw_text *out, u64 most,
		  u8 argument, u8 kind, u8 fixed)
{
	u64 used = all->used, length;
	void *address;

	if (argument >= CW_CALL_ARGS)
		return;
	address = (void *)call->args[argument];
	out->argument = argument;
	if (!address)
		return;
	ONE_REGISTER(used);
	if (used > CW_TEXT_ROOM - (CW_TEXT + 8))
		return;
	ONE_REGISTER(used);
	if (kind == CW_LENGTH_STRING) {
		u64 room = most + 2; /* its zero, and a byte that tells whether there is more */
		long got;

		ONE_REGISTER(room);
		if (room > CW_TEXT + 2)
			return;
		ONE_REGISTER(room);
		got = bpf_probe_read_user_str(all->bytes + used, room, address);
		if (got < 0) {
			out->flags = CW_TEXT_FAULT;
			return;
		}
		length = got > 0 ? got - 1 : 0; /* 0: an empty one, before 6.17 */
	} else {
		u64 bytes;

		length = length_of(call, kind, fixed);
		bytes = length > most ? most : length;
		ONE_REGISTER(bytes);
		if (bytes > CW_TEXT)
			return;
		ONE_REGISTER(bytes);
		if (bpf_probe_read_user(all->bytes + used, bytes, address)) {
			out->flags = CW_TEXT_FAULT;
			return;
		}
	}
	out->flags = length > most ? CW_TEXT_THERE | CW_TEXT_CUT : CW_TEXT_THERE;
	length = length > most ? most : length;
	out->length = length;
	all->used = used + length;
}

FN struct cw_call_shape *shape_of(struct cw_call *call)
{
	u32 number = call->number;

	if (number >= CW_CALL_NUMBERS)
		return 0;
	if (call->flags & CW_CALL_COMPAT)
		number += CW_CALL_NUMBERS;
	return bpf_map_lookup_elem(&shapes, &number);
}

FN void no_text(struct cw_text *out, u8 argument)
{
	out->argument = argument;
	out->flags = CW_TEXT_FAULT;
	out->length = 0;
}

/* At the entry: what the call is told. */
FN void copy_in(struct cw_traced *own, struct task_struct *t, u64 most)
{
	struct cw_call *call = &own->now.call;
	struct cw_call_shape *shape = shape_of(call);
	struct cw_texts *all;

	if (!shape || !shape->texts[0].when)
		return;
	all = bpf_task_storage_get(&texts, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (all)
		all->used = 0;
	for (int i = 0; i < CW_CALL_TEXTS; i++)
		if (shape->texts[i].when != CW_TEXT_IN)
			continue;
		else if (!all)
			no_text(&call->texts[i], shape->texts[i].argument);
		else
			copy_text(all, call, &call->texts[i], most, shape->texts[i].argument,
				  shape->texts[i].length, shape->texts[i].bytes);
}

/* At the exit: what it has answered, and what was not in memory before the kernel looked at it. */
FN struct cw_texts *copy_out(struct cw_traced *own, struct task_struct *t, u64 most)
{
	struct cw_call *call = &own->now.call;
	struct cw_call_shape *shape = shape_of(call);
	struct cw_texts *all;

	if (!shape || !shape->texts[0].when || call->flags & CW_CALL_NO_ENTRY)
		return 0;
	all = bpf_task_storage_get(&texts, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (own->state & HAS_EXECED || call->flags & CW_CALL_NO_RETURN)
		return all;
	for (int i = 0; i < CW_CALL_TEXTS; i++) {
		struct cw_text *out = &call->texts[i];
		u8 late = out->flags & CW_TEXT_FAULT;

		if (!late && (shape->texts[i].when != CW_TEXT_OUT || call->result < 0))
			continue;
		if (!all) {
			no_text(out, shape->texts[i].argument);
		} else {
			copy_text(all, call, out, most, shape->texts[i].argument,
				  shape->texts[i].length, shape->texts[i].bytes);
			if (late && out->flags & CW_TEXT_THERE)
				out->flags |= CW_TEXT_LATE;
		}
	}
	return all;
}

/* -- calls --------------------------------------------------------------------------------- */

FN int is_wanted(struct cw_trace_rule *rule, u32 number, u16 flags)
{
	u32 word = number / 64;

	if (number >= CW_CALL_NUMBERS) /* of x32, or none at all: with the last bit */
		number = word = CW_CALL_NUMBERS - 1, word /= 64;
	if (word >= CW_NUMBER_WORDS)
		return 0;
	return rule->wanted[flags & CW_CALL_COMPAT][word] >> (number & 63) & 1;
}

FN void fill_args(struct cw_call *call, struct pt_regs *regs)
{
	if (call->flags & CW_CALL_COMPAT) {
		call->args[0] = (u32)regs->bx;
		call->args[1] = (u32)regs->cx;
		call->args[2] = (u32)regs->dx;
		call->args[3] = (u32)regs->si;
		call->args[4] = (u32)regs->di;
		call->args[5] = (u32)regs->bp;
	} else {
		call->args[0] = regs->di;
		call->args[1] = regs->si;
		call->args[2] = regs->dx;
		call->args[3] = regs->r10;
		call->args[4] = regs->r8;
		call->args[5] = regs->r9;
	}
}

FN void fill_call(struct cw_call *call, struct pt_regs *regs, u32 number, u16 flags, u64 enter_ns)
{
	call->enter_ns = enter_ns;
	call->number = number;
	call->flags = flags;
	call->result = 0;
	__builtin_memset(call->texts, 0, sizeof(call->texts));
	fill_args(call, regs);
}

FN u16 kind_of_code(struct task_struct *t)
{
	return t->thread_info.status & CW_TS_COMPAT ? CW_CALL_COMPAT : 0;
}

SEC("tp_btf/sys_enter") int enter(u64 *ctx)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct cw_traced *own = bpf_task_storage_get(&traced, t, 0, 0);
	struct cw_trace_rule *rule;
	u32 number = ctx[1];
	u16 flags;

	if (!own)
		return 0;
	rule = rule_of(own);
	if (!rule)
		return 0;
	if (own->state & FROM_EXEC && number != CW_NR_EXECVE && number != CW_NR_EXECVEAT)
		return 0;
	flags = kind_of_code(t);
	if (!is_wanted(rule, number, flags)) {
		own->state = UNWANTED;
		return 0;
	}
	fill_call(&own->now.call, (struct pt_regs *)ctx[0], number, flags, bpf_ktime_get_boot_ns());
	own->state = IN_CALL;
	if (rule->strings)
		copy_in(own, t, rule->strings);
	return 0;
}

FN void stop_for_reader(struct cw_traced *own, struct task_struct *t)
{
	struct cw_trace_wait wait = {};
	u64 start_ns = t->group_leader->start_boottime;
	u32 tgid = t->tgid;

	/* whom the reader is to wake; without that it must not be stopped */
	if (bpf_map_update_elem(&stopped, &tgid, &start_ns, BPF_ANY))
		return;
	own->state |= STOPPING;
	/* To this thread: one to the process may be there already, for another thread that has not had
	 * a CPU to take it since. */
	bpf_send_signal_thread(CW_SIGSTOP);
	/* The reader may have taken the name and sent SIGCONT before there was anything to resume. */
	if (bpf_map_update_elem(&stopped, &tgid, &start_ns, BPF_ANY))
		bpf_send_signal(CW_SIGCONT);
	own->state &= ~STOPPING;
	fill_event(&wait.event, own, t, CW_TRACED_WAIT, sizeof(wait));
	TELL(own, &wait, sizeof(wait));
}

FN void tell_call(struct cw_traced *own, struct cw_trace_rule *rule, struct task_struct *t)
{
	struct cw_texts *all = rule->strings ? copy_out(own, t, rule->strings) : 0;
	u64 bytes = waiting(), extra;
	long refused = -1;

	fill_event(&own->now.event, own, t, CW_TRACED_CALL, sizeof(own->now));
	take_lost(&own->now.event, own);
	extra = all ? all->used : 0;
	ONE_REGISTER(extra);
	if (extra > CW_TEXT_ROOM)
		extra = 0;
	ONE_REGISTER(extra);
	if (bytes >= rule->room) {
		;
	} else if (all && extra) {
		own->now.event.size += extra;
		__builtin_memcpy(&all->told, &own->now, sizeof(all->told));
		refused = bpf_ringbuf_output(&ring, all, sizeof(all->told) + extra,
					      wake_up(bytes, own->now.event.size));
	} else {
		refused = bpf_ringbuf_output(&ring, &own->now, sizeof(own->now),
					      wake_up(bytes, sizeof(own->now)));
	}
	if (refused) {
		lose(&own->now.event, own);
		own->lost_calls++;
	}
	if (rule->flags & CW_RULE_WAIT && bytes >= rule->high)
		stop_for_reader(own, t);
}

FN void keep_texts(struct cw_traced *own, struct cw_trace_rule *rule, struct task_struct *t,
		   u32 slot)
{
	u64 most = rule->strings > CW_KEPT_TEXT ? CW_KEPT_TEXT : rule->strings, at = 0;
	struct cw_texts *all = copy_out(own, t, most);
	struct cw_all_texts *mine;

	if (!all || slot >= CW_KEPT_CALLS)
		return;
	mine = bpf_task_storage_get(&kept_texts, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!mine) {
		for (int i = 0; i < CW_CALL_TEXTS; i++)
			if (own->now.call.texts[i].flags)
				no_text(&own->now.call.texts[i], own->now.call.texts[i].argument);
		return;
	}
	for (int i = 0; i < CW_CALL_TEXTS; i++) {
		u64 length = own->now.call.texts[i].length;

		ONE_REGISTER(length);
		if (length > CW_KEPT_TEXT)
			length = CW_KEPT_TEXT;
		ONE_REGISTER(length);
		ONE_REGISTER(at);
		if (at > CW_TEXT_ROOM - CW_KEPT_TEXT)
			return;
		ONE_REGISTER(at);
		bpf_probe_read_kernel(mine->of[slot].bytes[i], length, all->bytes + at);
		at += length;
	}
}

FN void keep_call(struct cw_traced *own, struct cw_trace_rule *rule, struct task_struct *t)
{
	struct cw_kept *mine = bpf_task_storage_get(&kept, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	u32 calls = rule->calls, slot;

	if (!mine || !calls) {
		own->lost_calls++;
		return;
	}
	mine->calls = calls;
	slot = (u32)mine->made % calls;
	mine->made++;
	if (slot >= CW_KEPT_CALLS)
		return;
	if (rule->strings)
		keep_texts(own, rule, t, slot);
	mine->kept[slot].call = own->now.call;
	mine->kept[slot].exit_ns = bpf_ktime_get_boot_ns();
}

FN void end_call(struct cw_traced *own, struct cw_trace_rule *rule, struct task_struct *t)
{
	own->made++;
	own->now.call.cpu = bpf_get_smp_processor_id();
	if (rule->mode == CW_TRACE_RECORD)
		keep_call(own, rule, t);
	else
		tell_call(own, rule, t);
}

/* What this exit ends; 0: nothing that is told. */
FN int begin_exit(struct cw_traced *own, struct cw_trace_rule *rule, struct task_struct *t,
		  struct pt_regs *regs)
{
	u32 state = own->state, number;
	u16 flags;

	if (state & IN_CALL)
		return 1;
	own->state = state & FROM_EXEC;
	if (state & (UNWANTED | BORN | FROM_EXEC) || (s64)regs->orig_ax < 0)
		return 0;
	number = regs->orig_ax;
	flags = kind_of_code(t);
	if (!is_wanted(rule, number, flags))
		return 0;
	fill_call(&own->now.call, regs, number, flags | CW_CALL_NO_ENTRY, 0);
	return 1;
}

SEC("tp_btf/sys_exit") int leave(u64 *ctx)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct cw_traced *own = bpf_task_storage_get(&traced, t, 0, 0);
	struct cw_trace_rule *rule;

	if (!own)
		return 0;
	rule = rule_of(own);
	if (!rule || !begin_exit(own, rule, t, (struct pt_regs *)ctx[0]))
		return 0;
	own->now.call.result = ctx[1];
	end_call(own, rule, t);
	own->state = 0;
	return 0;
}

/* -- signals ------------------------------------------------------------------------------- */

FN int is_real_info(u64 info)
{
	return info > CW_SEND_SIG_PRIV;
}

SEC("tp_btf/signal_generate") int signal_sent(u64 *ctx)
{
	struct task_struct *t = (void *)ctx[2], *sender;
	struct cw_trace_sent sent = {};
	struct cw_trace_rule *rule;
	struct cw_traced *own;
	u64 info = ctx[1];
	u32 signal = ctx[0], result = ctx[4];
	int code = 0;

	own = t ? bpf_task_storage_get(&traced, t, 0, 0) : 0;
	if (!own || result == CW_TRACE_SIGNAL_IGNORED)
		return 0;
	rule = rule_of(own);
	if (!rule || rule->mode != CW_TRACE_LIVE || own->state & FROM_EXEC)
		return 0;
	sent.sender_tgid = bpf_get_current_pid_tgid() >> 32;
	if (own->state & STOPPING || (signal == CW_SIGCONT && sent.sender_tgid == rule->reader))
		return 0;
	sent.has_info = is_real_info(info) &&
			!bpf_probe_read_kernel(sent.info, sizeof(sent.info), (void *)info);
	if (sent.has_info)
		code = READ((struct kernel_siginfo *)info, si_code);
	sender = bpf_get_current_task_btf();
	fill_event(&sent.event, own, t, CW_TRACED_SENT, sizeof(sent));
	sent.signal = signal;
	sent.result = result;
	sent.sender_tid = bpf_get_current_pid_tgid();
	sent.sender_uid = bpf_get_current_uid_gid();
	sent.by_kernel = info == CW_SEND_SIG_PRIV || code > 0;
	bpf_probe_read_kernel(sent.sender_comm, sizeof(sent.sender_comm), sender->comm);
	TELL(own, &sent, sizeof(sent));
	return 0;
}

/* A signal that kills the whole process comes to each of its threads as a SIGKILL without siginfo;
 * the real one is in the exit code. 0: an exit or an execve of another thread ends this one. */
FN u32 real_signal(struct task_struct *t, u32 signal)
{
	struct signal_struct *group = t->signal;

	if (signal != CW_SIGKILL)
		return signal;
	if (group->group_exec_task)
		return 0;
	return group->flags & CW_GROUP_EXIT ? group->group_exit_code & STATUS_SIGNAL : signal;
}

SEC("tp_btf/signal_deliver") int signal_taken(u64 *ctx)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct cw_traced *own = bpf_task_storage_get(&traced, t, 0, 0);
	struct cw_trace_signal taken = {};
	struct k_sigaction *action = (void *)ctx[2];
	struct cw_trace_rule *rule;
	u32 tgid = t->tgid;
	u64 info = ctx[1];

	if (!own || own->state & FROM_EXEC)
		return 0;
	rule = rule_of(own);
	if (!rule || rule->mode != CW_TRACE_LIVE)
		return 0;
	taken.signal = real_signal(t, ctx[0]);
	if (!taken.signal)
		return 0;
	if (taken.signal == CW_SIGSTOP && bpf_map_lookup_elem(&stopped, &tgid))
		return 0;
	fill_event(&taken.event, own, t, CW_TRACED_SIGNAL, sizeof(taken));
	taken.handler = (u64)READ(action, sa.sa_handler);
	taken.has_info = is_real_info(info) &&
			 !bpf_probe_read_kernel(taken.info, sizeof(taken.info), (void *)info);
	TELL(own, &taken, sizeof(taken));
	return 0;
}

/* -- births, new programs, deaths ---------------------------------------------------------- */

/* What a thread needs beside its value of `traced`, before its first call: to make it then may fail,
 * as in the middle of a thread's work on its task storage no other one of this CPU makes any. What
 * could not be made is tried again at each call, which is counted as lost if that fails as well.
 * 0: not all of it could be made. */
FN int make_room(struct cw_trace_rule *rule, struct task_struct *t)
{
	u64 create = BPF_LOCAL_STORAGE_GET_F_CREATE;

	if (rule->mode == CW_TRACE_RECORD && !bpf_task_storage_get(&kept, t, 0, create))
		return 0;
	if (!rule->strings)
		return 1;
	if (!bpf_task_storage_get(&texts, t, 0, create))
		return 0;
	return rule->mode != CW_TRACE_RECORD || bpf_task_storage_get(&kept_texts, t, 0, create);
}

/* The child has not run, and is in the list of tasks already: `arm` may have been first. */
SEC("tp_btf/task_newtask") int born(u64 *ctx)
{
	struct task_struct *parent = bpf_get_current_task_btf(), *t = (void *)ctx[0];
	struct cw_traced *own = bpf_task_storage_get(&traced, parent, 0, 0), *child;
	struct cw_trace_fork fork = {};
	struct cw_trace_rule *rule;

	if (!own || !t || t->flags & (CW_PF_IO_WORKER | CW_PF_USER_WORKER | CW_PF_KTHREAD))
		return 0;
	rule = rule_of(own);
	if (!rule || (!(rule->flags & CW_RULE_FOLLOW) && t->tgid != parent->tgid))
		return 0;
	child = bpf_task_storage_get(&traced, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (child) {
		child->now.event.rule = own->now.event.rule;
		child->state = BORN | (own->state & FROM_EXEC);
		make_room(rule, t);
	} else {
		count(CW_COUNT_UNTRACED);
	}
	if (rule->mode != CW_TRACE_LIVE || own->state & FROM_EXEC)
		return 0;
	fill_event(&fork.event, own, parent, CW_TRACED_FORK, sizeof(fork));
	fork.clone_flags = ctx[1];
	fork.child_tid = t->pid;
	fork.child_tgid = t->tgid;
	fork.untraced = !child;
	TELL(own, &fork, sizeof(fork));
	return 0;
}

SEC("tp_btf/sched_process_exec") int execed(u64 *ctx)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct cw_traced *own = bpf_task_storage_get(&traced, t, 0, 0);
	struct cw_trace_rule *rule;
	struct cw_exec_room *room;
	u64 start, all, bytes, path = 0;
	u32 zero = 0;
	long got;

	if (!own)
		return 0;
	own->state |= HAS_EXECED;
	rule = rule_of(own);
	room = bpf_map_lookup_elem(&exec_room, &zero);
	if (!rule || !room || rule->mode != CW_TRACE_LIVE)
		return 0;
	fill_event(&room->exec.event, own, t, CW_TRACED_EXEC, sizeof(room->exec));
	room->exec.old_tid = ctx[1];
	if (rule->strings) {
		bytes = (u64)rule->strings + 1; /* with its zero */
		ONE_REGISTER(bytes);
		if (bytes > CW_TEXT)
			bytes = CW_TEXT;
		ONE_REGISTER(bytes);
		got = bpf_probe_read_kernel_str(room->texts, bytes,
						READ((struct linux_binprm___path *)ctx[2], filename));
		path = got < 0 ? 0 : got;
	}
	ONE_REGISTER(path);
	if (path > CW_TEXT)
		path = 0;
	ONE_REGISTER(path);
	room->exec.path = path;
	start = READ(t->mm, arg_start);
	all = READ(t->mm, arg_end) - start;
	room->exec.all_arguments = all;
	bytes = all > rule->strings ? rule->strings : all;
	ONE_REGISTER(bytes);
	if (bytes > CW_TEXT)
		bytes = CW_TEXT;
	ONE_REGISTER(bytes);
	if (bytes && bpf_probe_read_user(room->texts + path, bytes, (void *)start))
		bytes = 0;
	room->exec.arguments = bytes;
	bytes += path;
	room->exec.event.size += bytes;
	ONE_REGISTER(bytes);
	if (bytes > 2 * CW_TEXT)
		return 0;
	ONE_REGISTER(bytes);
	take_lost(&room->exec.event, own);
	if (bpf_ringbuf_output(&ring, room, sizeof(room->exec) + bytes, BPF_RB_FORCE_WAKEUP))
		lose(&room->exec.event, own);
	return 0;
}

FN void fill_kept(struct cw_kept *mine, struct cw_traced *own, struct task_struct *t)
{
	fill_event(&mine->event, own, t, CW_TRACED_KEPT, sizeof(*mine));
	mine->has_texts = 0;
	mine->start_ns = t->group_leader->start_boottime;
	mine->lost_calls = own->lost_calls;
	mine->last = !t->signal->live.counter;
	bpf_probe_read_kernel(mine->comm, sizeof(mine->comm), t->comm);
}

FN void note_untold(struct cw_traced *own, struct task_struct *t, u64 lost_calls, u32 lost)
{
	struct cw_untold left = {};
	u32 tid = t->pid;

	left.made = own->made;
	left.lost_calls = lost_calls;
	left.start_ns = t->group_leader->start_boottime;
	left.tgid = t->tgid;
	left.lost = lost;
	left.rule = own->now.event.rule;
	left.last = !t->signal->live.counter;
	if (bpf_map_update_elem(&untold, &tid, &left, BPF_ANY))
		count(CW_COUNT_UNTOLD);
}

/* What it has kept goes to the ring; before it its texts, as they are that large. */
FN void tell_kept(struct cw_traced *own, struct task_struct *t, u32 status)
{
	struct cw_kept *mine = bpf_task_storage_get(&kept, t, 0, 0);
	struct cw_all_texts *all;

	if (!mine) {
		note_untold(own, t, own->made, 0);
		return;
	}
	all = bpf_task_storage_get(&kept_texts, t, 0, 0);
	if (all) {
		fill_event(&all->event, own, t, CW_TRACED_TEXTS, sizeof(*all));
		TELL(own, all, sizeof(*all));
	}
	fill_kept(mine, own, t);
	mine->status = status;
	mine->has_texts = !!all;
	take_lost(&mine->event, own);
	if (bpf_ringbuf_output(&ring, mine, sizeof(*mine), BPF_RB_FORCE_WAKEUP))
		note_untold(own, t, own->made, mine->event.lost);
}

SEC("tp_btf/sched_process_exit") int ended(u64 *ctx)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct cw_traced *own = bpf_task_storage_get(&traced, t, 0, 0);
	struct cw_trace_exit exit = {};
	struct cw_trace_rule *rule;

	if (!own || own->state & FROM_EXEC)
		return 0;
	rule = rule_of(own);
	if (!rule)
		return 0;
	if (own->state & IN_CALL) {
		own->now.call.flags |= CW_CALL_NO_RETURN;
		end_call(own, rule, t);
	}
	own->state = 0;
	exit.status = (t->signal->flags & CW_GROUP_EXIT ? t->signal->group_exit_code :
							  t->exit_code) & STATUS_BITS;
	if (rule->mode == CW_TRACE_RECORD) {
		if (rule->flags & CW_RULE_TELL_FAILED && exit.status)
			tell_kept(own, t, exit.status);
		return 0;
	}
	fill_event(&exit.event, own, t, CW_TRACED_EXIT, sizeof(exit));
	exit.made = own->made;
	exit.lost_calls = own->lost_calls;
	exit.last = !t->signal->live.counter;
	take_lost(&exit.event, own);
	if (bpf_ringbuf_output(&ring, &exit, sizeof(exit), BPF_RB_FORCE_WAKEUP))
		note_untold(own, t, exit.lost_calls, exit.event.lost);
	return 0;
}

/* -- what the reader asks for -------------------------------------------------------------- */

FN void tell_armed(struct bpf_iter__task *ctx, struct task_struct *t, u32 how)
{
	struct cw_armed_thread out = {};

	out.tid = t->pid;
	out.tgid = t->tgid;
	out.armed = how;
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
}

SEC("iter/task") int arm(struct bpf_iter__task *ctx)
{
	struct task_struct *t = ctx->task;
	struct cw_trace_rule *rule;
	struct cw_arming *wanted;
	struct cw_traced *own;
	u32 zero = 0, number;

	wanted = bpf_map_lookup_elem(&arming, &zero);
	if (!t || !wanted)
		return 0;
	if (t->flags & NEVER_TRACED) {
		tell_armed(ctx, t, CW_ARMED_OTHER);
		return 0;
	}
	if (bpf_task_storage_get(&traced, t, 0, 0)) {
		tell_armed(ctx, t, CW_ARMED_BEFORE);
		return 0;
	}
	number = wanted->rule;
	rule = bpf_map_lookup_elem(&rules, &number);
	own = rule && make_room(rule, t) ?
		      bpf_task_storage_get(&traced, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE) : 0;
	if (own) {
		if (wanted->from_exec)
			own->state = FROM_EXEC;
		IN_THIS_ORDER; /* it runs: rule 0 has no mode */
		own->now.event.rule = wanted->rule;
	}
	tell_armed(ctx, t, own ? CW_ARMED_NOW : CW_ARMED_NOT);
	return 0;
}

SEC("iter/task") int disarm(struct bpf_iter__task *ctx)
{
	struct task_struct *t = ctx->task;
	u32 was;

	if (!t)
		return 0;
	was = !bpf_task_storage_delete(&traced, t);
	bpf_task_storage_delete(&texts, t);
	bpf_task_storage_delete(&kept, t);
	bpf_task_storage_delete(&kept_texts, t);
	tell_armed(ctx, t, was ? CW_ARMED_BEFORE : CW_ARMED_OTHER);
	return 0;
}

SEC("iter/task") int present(struct bpf_iter__task *ctx)
{
	struct task_struct *t = ctx->task;
	struct cw_present out = {};
	struct cw_traced *own;

	own = t ? bpf_task_storage_get(&traced, t, 0, 0) : 0;
	if (!own || own->state & FROM_EXEC || t->flags & CW_PF_EXITING)
		return 0;
	fill_event(&out.event, own, t, 0, sizeof(out));
	out.event.lost = own->lost;
	out.made = own->made;
	out.lost_calls = own->lost_calls;
	out.call = own->now.call;
	out.in_call = own->state & IN_CALL;
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	return 0;
}

/* A call that has not returned is the last one, and flagged so. */
SEC("iter/task") int kept_calls(struct bpf_iter__task *ctx)
{
	struct task_struct *t = ctx->task;
	struct cw_traced *own = t ? bpf_task_storage_get(&traced, t, 0, 0) : 0;
	struct cw_all_texts *all;
	struct cw_present open = {};
	struct cw_kept *mine;

	if (!own || t->flags & CW_PF_EXITING)
		return 0;
	mine = bpf_task_storage_get(&kept, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!mine)
		return 0;
	all = bpf_task_storage_get(&kept_texts, t, 0, 0);
	fill_kept(mine, own, t);
	mine->has_texts = !!all;
	mine->status = 0;
	mine->last = 0;
	fill_event(&open.event, own, t, 0, sizeof(open));
	open.made = own->made;
	open.call = own->now.call;
	open.in_call = own->state & IN_CALL;
	if (open.in_call)
		open.call.flags |= CW_CALL_OPEN;
	bpf_seq_write(ctx->meta->seq, mine, sizeof(*mine));
	if (all)
		bpf_seq_write(ctx->meta->seq, all, sizeof(*all));
	bpf_seq_write(ctx->meta->seq, &open, sizeof(open));
	return 0;
}
