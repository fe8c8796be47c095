/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * Processes whose memory the reader holds while they live: their threads as they leave, what is
 * started, and the mappings of an address space that has outlived its process. Part of
 * coreward.bpf.c, not a header for others.
 */
#ifndef COREWARD_ARMED_H
#define COREWARD_ARMED_H

RING_MAP(armed_ring, CW_ARMED_RING_BYTES);
KEPT_MAP(armed, u32, struct cw_armed, CW_ARMED_ENTRIES);
ARRAY_MAP(armed_walk, struct cw_armed_walk, 1);

/* 0: it is not armed. */
FN struct cw_armed *armed_of(u32 pid, u64 start_ns)
{
	struct cw_armed *found = is_set(CW_ARMING) ? bpf_map_lookup_elem(&armed, &pid) : 0;

	return found && found->start_tick == start_ns / CW_TICK_NS ? found : 0;
}

/*
 * As weigh(). An armed process is told even where others of its owner have used up the share, but not
 * beyond that of its own program. Its stack is in the memory that is held.
 */
FN u32 weigh_armed(struct cw_program *program, u32 pid, u64 start_ns, int may_be_big)
{
	int is_armed = armed_of(pid, start_ns) != 0;
	u32 telling = weigh(program, may_be_big && !is_armed);

	return telling == CW_TELL_COUNT && is_armed && !program->inode ? CW_TELL_SMALL : telling;
}

FN void fill_armed_event(struct cw_armed_event *event, u32 type, u32 size, u32 pid, u64 start_ns)
{
	event->type = type;
	event->size = size;
	event->start_ns = start_ns;
	event->pid = pid;
	event->parent = 0;
}

/* One more word of its memory as it is; 0 if it cannot be read. */
FN int keep_word(struct cw_armed_word *out, u64 address)
{
	u32 value = 0;

	if (bpf_probe_read_user(&value, sizeof(value), (void *)address))
		return 0;
	out->address = address;
	out->value = value;
	return 1;
}

/*
 * The words that its exit changes: mm_release() of kernel/fork.c, exit_robust_list() of
 * kernel/futex/core.c. The list of robust futexes ends where it begins; the lowest bit of a pointer in it
 * says what kind of futex it is.
 */
FN void fill_words(struct cw_armed_thread *out, struct task_struct *t)
{
	u64 head = out->thread.robust_list, entry = 0, offset = 0;

	__builtin_memset(out->words, 0, sizeof(out->words));
	out->told = 0;
	out->reserved = 0;
	if (out->thread.clear_child_tid)
		keep_word(&out->words[0], out->thread.clear_child_tid);
	if (!head || bpf_probe_read_user(&entry, sizeof(entry), (void *)head) ||
	    bpf_probe_read_user(&offset, sizeof(offset), (void *)(head + sizeof(u64))))
		return;
	for (int word = 1; word < CW_ARMED_WORDS; word++) {
		entry &= ~1ULL;
		if (entry == head || !keep_word(&out->words[word], entry + offset))
			return;
		if (bpf_probe_read_user(&entry, sizeof(entry), (void *)entry))
			return;
	}
	if ((entry & ~1ULL) != head)
		out->told |= CW_ARMED_MORE_WORDS;
}

FN u64 armed_xstate(struct cw_armed_thread *out, struct task_struct *t)
{
	struct fpu *fpu = task_fpu(t);
	struct fpstate *fpstate = READ(fpu, fpstate);

	out->thread.xfeatures = READ(fpstate, user_xfeatures);
	return xstate_size(ADDRESS(fpstate, regs), READ(fpstate, size), out->thread.xfeatures);
}

FN void fill_armed_thread(struct cw_armed_thread *out, void *area, u64 most, struct task_struct *t)
{
	struct fpstate *fpstate = READ(task_fpu(t), fpstate);
	u64 size;

	fill_thread(&out->thread, t);
	fill_words(out, t);
	size = armed_xstate(out, t);
	if (!(READ(t, thread_info.flags) & setting(CW_LOAD_FPU))) {
		out->told |= CW_ARMED_NO_XSTATE;
		size = 0;
	}
	ONE_REGISTER(size);
	if (size > most || bpf_probe_read_kernel(area, size, ADDRESS(fpstate, regs)))
		size = 0;
	out->thread.xstate_size = size;
	out->thread.size = sizeof(out->thread) + size;
}

struct cw_armed_usual {
	struct cw_armed_thread told;
	__u8 xstate[CW_XSTATE_USUAL];
};

struct cw_armed_large {
	struct cw_armed_thread told;
	__u8 xstate[CW_XSTATE_LARGE];
};

FN int tell_usual(struct task_struct *t, u32 pid, u64 start_ns)
{
	struct cw_armed_usual *out =
		bpf_ringbuf_reserve(&armed_ring, sizeof(struct cw_armed_usual), 0);

	if (!out)
		return 0;
	fill_armed_event(&out->told.event, CW_ARMED_THREAD, sizeof(*out), pid, start_ns);
	fill_armed_thread(&out->told, out->xstate, CW_XSTATE_USUAL, t);
	bpf_ringbuf_submit(out, 0);
	return 1;
}

FN int tell_large(struct task_struct *t, u32 pid, u64 start_ns)
{
	struct cw_armed_large *out =
		bpf_ringbuf_reserve(&armed_ring, sizeof(struct cw_armed_large), 0);

	if (!out)
		return 0;
	fill_armed_event(&out->told.event, CW_ARMED_THREAD, sizeof(*out), pid, start_ns);
	fill_armed_thread(&out->told, out->xstate, CW_XSTATE_LARGE, t);
	bpf_ringbuf_submit(out, 0);
	return 1;
}

/* Whether more of its XSAVE area is in use than tell_usual() tells. */
FN int is_large(struct task_struct *t)
{
	struct fpstate *fpstate = READ(task_fpu(t), fpstate);

	return xstate_size(ADDRESS(fpstate, regs), READ(fpstate, size),
			   READ(fpstate, user_xfeatures)) > CW_XSTATE_USUAL;
}

/* A thread of an armed process that leaves with all others; not one that ends alone, nor by execve. */
FN void tell_armed(void)
{
	struct task_struct *t = (void *)bpf_get_current_task_btf();
	struct signal_struct *group;
	struct task_struct *leader;
	struct cw_armed *found;
	u64 start_ns;
	u32 pid;

	if (!is_set(CW_ARMING))
		return;
	group = READ(t, signal);
	if (READ(t, flags) & (CW_PF_IO_WORKER | CW_PF_USER_WORKER) || READ(group, group_exec_task))
		return;
	if (!(READ(group, flags) & CW_GROUP_EXIT) && READ(group, live.counter))
		return;
	leader = READ(t, group_leader);
	start_ns = READ(leader, start_boottime);
	pid = READ(t, tgid);
	found = armed_of(pid, start_ns);
	if (found && found->flags & CW_ARMED_BY_FORK) {
		if (!READ(group, live.counter))
			bpf_map_delete_elem(&armed, &pid);
		return;
	}
	if (!found || (is_large(t) ? tell_large(t, pid, start_ns) : tell_usual(t, pid, start_ns)))
		return;
	__sync_fetch_and_add(&found->dropped, 1);
	count(CW_DROPPED_ARMED);
}

FN void tell_started(u32 type, u32 pid, u64 start_ns, u32 parent)
{
	struct cw_armed_event *out;

	/* whoever starts process after process must not crowd out what others have died with */
	out = WAITING_BYTES(armed_ring) > CW_ARMED_RING_BIG ?
		      0 : bpf_ringbuf_reserve(&armed_ring, sizeof(struct cw_armed_event), 0);
	if (!out) {
		count(CW_DROPPED_STARTED);
		return;
	}
	fill_armed_event(out, type, sizeof(*out), pid, start_ns);
	out->parent = parent;
	bpf_ringbuf_submit(out, 0);
}

FN int on_exec(struct task_struct *t)
{
	struct task_struct *leader = READ(t, group_leader);

	if (is_set(CW_ARMING))
		tell_started(CW_ARMED_EXEC, READ(t, tgid), READ(leader, start_boottime), 0);
	return 0;
}

ON_EVENT(sched_process_exec)
{
	return on_exec((void *)ctx->args[0]);
}

/* A child that has memory of its own; that of vfork(2) is told when it execs. */
FN int on_fork(struct task_struct *parent, struct task_struct *child)
{
	struct task_struct *leader;
	struct cw_armed *found;
	struct cw_armed made = {};
	u32 parent_pid, pid;
	u64 start_ns;

	if (!is_set(CW_ARMING))
		return 0;
	parent_pid = READ(parent, tgid);
	pid = READ(child, tgid);
	if (pid == parent_pid)
		return 0;
	leader = READ(parent, group_leader);
	found = armed_of(parent_pid, READ(leader, start_boottime));
	if (!found)
		return 0;
	start_ns = READ(child, start_boottime);
	if (found->flags & CW_ARMED_CHILDREN) {
		made.start_tick = start_ns / CW_TICK_NS;
		made.flags = found->flags | CW_ARMED_BY_FORK;
		bpf_map_update_elem(&armed, &pid, &made, BPF_ANY);
	}
	if (found->flags & CW_ARMED_CHILDREN || READ(child, mm) != READ(parent, mm))
		tell_started(CW_ARMED_FORK, pid, start_ns, parent_pid);
	return 0;
}

ON_EVENT(sched_process_fork)
{
	return on_fork((void *)ctx->args[0], (void *)ctx->args[1]);
}

#ifndef COREWARD_BCC

/* <linux/mm_types_task.h> */
#define CW_FILE_PAGES 0
#define CW_ANON_PAGES 1
#define CW_SWAP_ENTRIES 2
#define CW_SHMEM_PAGES 3
#define CW_MM_COUNTERS 4

/* Bytes that one reading of a task iterator holds (kernel/bpf/bpf_iter.c), less the longest record. */
#define CW_READING ((8 * CW_PAGE) - sizeof(struct cw_mapping) - CW_PATH)

struct mm_rss_stat___before_6_2 {
	atomic_long_t count[CW_MM_COUNTERS];
} __attribute__((preserve_access_index));

struct mm_struct___before_6_2 {
	struct mm_rss_stat___before_6_2 rss_stat;
} __attribute__((preserve_access_index));

struct mm_struct___since_6_2 {
	struct percpu_counter rss_stat[CW_MM_COUNTERS];
} __attribute__((preserve_access_index));

FN u64 pages_of(void *mm, int kind)
{
	struct mm_struct___before_6_2 *old = mm;
	struct mm_struct___since_6_2 *now = mm;
	s64 pages = bpf_core_type_exists(struct mm_rss_stat___before_6_2) ?
			    READ(old, rss_stat.count[kind].counter) :
			    READ(now, rss_stat[kind].count);

	return pages > 0 ? pages : 0;
}

/* The address space behind the reader's /proc/PID/mem. */
FN void begin_armed_walk(struct cw_armed_walk *walk, struct task_struct *reader)
{
	struct files_struct *files = READ(reader, files);
	struct fdtable *table = READ(files, fdt);
	struct file **slots = READ(table, fd), *file = 0;
	struct mm_struct *mm;

	walk->begun = 1;
	walk->done = 1;
	if (walk->fd >= READ(table, max_fds))
		return;
	bpf_probe_read_kernel(&file, sizeof(file), slots + walk->fd);
	mm = file ? READ(file, private_data) : 0;
	if (!mm)
		return;
	walk->done = 0;
	walk->users = READ(mm, mm_users.counter);
	walk->files = pages_of(mm, CW_FILE_PAGES);
	walk->anonymous = pages_of(mm, CW_ANON_PAGES);
	walk->shared = pages_of(mm, CW_SHMEM_PAGES);
	walk->swapped = pages_of(mm, CW_SWAP_ENTRIES);
	begin_tree(&walk->tree, mm);
}

FN void fill_armed_file(struct cw_mapping *out, struct file *file, u64 *dentry, u64 *mnt)
{
	struct path *path = file_user_path(file);
	struct inode *inode = READ(file, f_inode);
	struct super_block *super = READ(inode, i_sb);

	out->inode = READ(inode, i_ino);
	out->nlink = READ(inode, i_nlink);
	out->dev = READ(super, s_dev);
	if (!path)
		path = (struct path *)ADDRESS(file, f_path);
	*dentry = (u64)READ(path, dentry);
	*mnt = (u64)READ(path, mnt);
	fill_walked(out, (struct dentry *)*dentry);
	out->flags |= CW_MAPPING_FILE;
}

FN void fill_armed_mapping(struct cw_mapping *out, struct vm_area_struct *vma, s32 users)
{
	struct mm_struct *mm = READ(vma, vm_mm);

	out->start = READ(vma, vm_start);
	out->end = READ(vma, vm_end);
	out->vm_flags = READ(vma, vm_flags);
	out->start_brk = READ(mm, start_brk);
	out->brk = READ(mm, brk);
	out->start_stack = READ(mm, start_stack);
	out->others = users;
	if (READ(vma, anon_vma))
		out->flags |= CW_MAPPING_ANON_VMA;
}

/* The name of a mapping that has no file: [vdso] and its like. */
FN s64 armed_special_name(char *to, struct cw_mapping *out, struct vm_area_struct *vma)
{
	const struct vm_operations_struct *ops = READ(vma, vm_ops);

	if (!ops || !READ(ops, name))
		return 0;
	out->flags |= CW_MAPPING_SPECIAL;
	return special_name(to, vma);
}

struct cw_listing {
	struct seq_file *seq;
};

static long tell_armed_mapping(u32 index, struct cw_listing *listing)
{
	u32 zero = 0;
	struct cw_armed_walk *walk = bpf_map_lookup_elem(&armed_walk, &zero);
	struct cw_path_scratch *scratch;
	struct vm_area_struct *vma = 0;
	struct cw_mapping out = {};
	struct file *file;
	u64 dentry = 0, mnt = 0;
	s64 size = 0;

	if (!walk || walk->said > CW_READING)
		return 1;
	if (!step_tree(&walk->tree, &vma)) {
		walk->done = 1;
		return 1;
	}
	scratch = bpf_task_storage_get(&path_scratch, bpf_get_current_task_btf(), 0,
				       BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!vma || !scratch)
		return 0;
	fill_armed_mapping(&out, vma, walk->users);
	file = READ(vma, vm_file);
	if (!file) {
		size = armed_special_name(scratch->bytes, &out, vma);
	} else {
		out.pgoff = READ(vma, vm_pgoff);
		fill_armed_file(&out, file, &dentry, &mnt);
		if (dentry == walk->last_dentry && mnt == walk->last_mnt)
			out.flags |= CW_MAPPING_SAME;
		else if (walk->told >= CW_PATHS_MAX)
			out.flags |= CW_MAPPING_UNNAMED;
		else
			size = copy_path((struct cw_path *)scratch->bytes, dentry, mnt, 0);
		if (!(out.flags & (CW_MAPPING_SAME | CW_MAPPING_UNNAMED))) {
			walk->last_dentry = dentry;
			walk->last_mnt = mnt;
			walk->told += size > 0 ? size : CW_PAGE;
		}
	}
	if (size < 0 || size > CW_PATH)
		size = -1;
	out.path_size = size;
	out.size = sizeof(out) + (size > 0 ? size : 0);
	bpf_seq_write(listing->seq, &out, sizeof(out));
	ONE_REGISTER(size);
	if (size > 0 && size <= CW_PATH)
		bpf_seq_write(listing->seq, scratch->bytes, size);
	walk->said += out.size;
	return 0;
}

/* Of the reader itself, whose descriptor the map `armed_walk` names. */
ITERATE_ALSO(task, armed_mappings)
{
	struct task_struct *t = ctx->task;
	u32 zero = 0;
	struct cw_armed_walk *walk = bpf_map_lookup_elem(&armed_walk, &zero);
	struct cw_listing listing = { .seq = ctx->meta->seq };

	if (!t || !walk || (walk->begun && walk->done))
		return 0;
	walk->thread_flags = READ(t, thread_info.flags);
	if (!walk->begun) {
		u32 only_begin = walk->done;

		begin_armed_walk(walk, t);
		walk->done |= only_begin;
	}
	walk->said = 0;
	if (!walk->done)
		bpf_loop(CW_TREE_STEPS, tell_armed_mapping, &listing, 0);
	return 0;
}

#endif

#endif
