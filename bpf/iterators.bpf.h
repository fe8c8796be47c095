/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * The threads and the mappings of one process, listed without stopping it. The reader chooses the
 * process when it opens an iterator. Part of coreward.bpf.c, not a header for others.
 */
#ifndef COREWARD_ITERATORS_H
#define COREWARD_ITERATORS_H

#include "paths.bpf.h"

#define CW_XSTATE_HEADER 512
#define CW_XSTATE_BASE 832
#define CW_XSTATE_BASE_FEATURES (1ULL << 0 | 1ULL << 1 | 1ULL << 2 | 1ULL << 9)

#define AGAIN 1 /* of an iterator: the reader gets EAGAIN, and this object next time */

struct cw_scratch {
	__u8 bytes[CW_XSTATE_MAX];
};

/* Of the reader, not of the CPU: another one may come in between, and it must not have to wait until
 * this one is through, for that may never be: the kernel lists mappings under the process's lock. */
TASK_MAP(xstate_scratch, struct cw_scratch);

/* Ids as fill_prstatus() of the kernel gives them: its real_parent is a thread, too. */
FN void fill_ids(struct cw_thread *out, struct task_struct *t)
{
	struct task_struct *parent = READ(t, real_parent);
	struct signal_struct *signal = READ(t, signal);
	struct pid *pid = READ(t, thread_pid);
	u32 level = READ(pid, level);
	struct upid own = {};

	bpf_probe_read_kernel(&own, sizeof(own), ADDRESS(pid, numbers[0]) + level);
	out->tid = READ(t, pid);
	out->tgid = READ(t, tgid);
	out->ns_tid = own.nr;
	out->ns_ppid = id_in_namespace(READ(parent, thread_pid), level, own.ns);
	out->ns_pgrp = id_in_namespace(READ(signal, pids[PIDTYPE_PGID]), level, own.ns);
	out->ns_sid = id_in_namespace(READ(signal, pids[PIDTYPE_SID]), level, own.ns);
}

FN void fill_thread(struct cw_thread *out, struct task_struct *t)
{
	struct signal_struct *signal = READ(t, signal);

	fill_ids(out, t);
	out->state = READ(t, __state);
	bpf_probe_read_kernel(out->comm, CW_COMM, ADDRESS(t, comm));
	out->sigpend = READ(t, pending.signal.sig[0]);
	out->sighold = READ(t, blocked.sig[0]);
	out->utime = READ(t, utime);
	out->stime = READ(t, stime);
	out->group_utime = READ(signal, utime);
	out->group_stime = READ(signal, stime);
	out->cutime = READ(signal, cutime);
	out->cstime = READ(signal, cstime);
	out->clear_child_tid = (u64)READ(t, clear_child_tid);
	out->robust_list = robust_list(t);
	out->pkru = READ(t, thread.pkru);
	bpf_probe_read_kernel(out->regs, CW_PT_REGS * sizeof(u64), (void *)bpf_task_pt_regs(t));
	fill_selectors(out->regs, t);
}

/*
 * How much of an XSAVE area tells something. x87, SSE, the header and YMM come first, compacted or
 * not; what is behind them (AVX-512, AMX) is left out where it is in its initial state.
 * PKRU has a field of its own. (Intel SDM volume 1, 13.4: XSTATE_BV is the header's first word.)
 */
FN u32 xstate_size(const void *area, u32 size, u64 features)
{
	u64 in_use = ~0ULL;

	if (size <= CW_XSTATE_BASE)
		return size;
	bpf_probe_read_kernel(&in_use, sizeof(in_use), (const char *)area + CW_XSTATE_HEADER);
	return in_use & features & ~CW_XSTATE_BASE_FEATURES ? size : CW_XSTATE_BASE;
}

ITERATE(task, threads)
{
	struct task_struct *t = ctx->task;
	struct cw_thread out = {};
	struct cw_scratch *scratch;
	struct fpstate *fpstate;
	struct fpu *fpu;
	u64 size;

	if (!t || GET(t, exit_state) || (GET(t, flags) & NO_THREAD))
		return 0;
	scratch = bpf_task_storage_get(&xstate_scratch, bpf_get_current_task_btf(), 0,
				       BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!scratch)
		return AGAIN;
	fill_thread(&out, t);
	fpu = task_fpu(t);
	fpstate = READ(fpu, fpstate);
	out.xfeatures = READ(fpstate, user_xfeatures);
	size = xstate_size(ADDRESS(fpstate, regs), READ(fpstate, size), out.xfeatures);
	ONE_REGISTER(size);
	if (size > CW_XSTATE_MAX ||
	    bpf_probe_read_kernel(scratch->bytes, size, ADDRESS(fpstate, regs)))
		size = 0;
	out.xstate_size = size;
	out.size = sizeof(out) + size;
	bpf_seq_write(ctx->meta->seq, &out, sizeof(out));
	ONE_REGISTER(size);
	if (size && size <= CW_XSTATE_MAX)
		bpf_seq_write(ctx->meta->seq, scratch->bytes, size);
	return 0;
}

/* <linux/magic.h>, <linux/fs.h> */
#define CW_TMPFS 0x01021994
#define CW_HUGETLBFS 0x958458f6
#define CW_FUSE 0x65735546
#define CW_FS_REQUIRES_DEV 1

/* Memory or a disk of this machine, not a server, nor a process (FUSE, with a disk or without). */
FN int is_own_file_system(struct super_block *super)
{
	u64 magic = GET(super, s_magic);

	if (magic == CW_TMPFS || magic == CW_HUGETLBFS)
		return 1;
	return magic != CW_FUSE && GET(GET(super, s_type), fs_flags) & CW_FS_REQUIRES_DEV;
}

FN s64 fill_file(struct cw_mapping *out, struct cw_path_scratch *scratch, struct cw_path_key *key,
		 struct file *file)
{
	struct inode *inode = GET(file, f_inode);
	struct path *user_path;
	u32 flags;

	out->flags |= CW_MAPPING_FILE;
	out->inode = GET(inode, i_ino);
	out->nlink = GET(inode, i_nlink);
	out->dev = GET(GET(inode, i_sb), s_dev);
	if (is_own_file_system(GET(inode, i_sb)))
		out->flags |= CW_MAPPING_OWN_FS;
	user_path = file_user_path(file);
	if (user_path) {
		key->dentry = (u64)READ(user_path, dentry);
		key->mnt = (u64)READ(user_path, mnt);
		fill_walked(out, (struct dentry *)key->dentry);
	} else {
		key->dentry = (u64)GET(file, f_path.dentry);
		key->mnt = (u64)GET(file, f_path.mnt);
	}
	key->inode = out->inode;
	flags = untold(scratch, key);
	out->flags |= flags;
	if (flags) {
		key->dentry = 0; /* nothing to remember */
		return 0;
	}
	if (user_path)
		return walked_path(scratch->bytes, key);
	return bpf_d_path((struct path *)ADDRESS(file, f_path), scratch->bytes, CW_PAGE);
}

ITERATE(task_vma, mappings)
{
	struct vm_area_struct *vma = ctx->vma;
	struct task_struct *task = ctx->task;
	struct cw_mapping out = {};
	struct cw_path_scratch *scratch;
	struct cw_path_key key = {};
	struct mm_struct *mm;
	struct file *file;
	s64 size = 0;

	if (!vma || !task)
		return 0;
	scratch = bpf_task_storage_get(&path_scratch, bpf_get_current_task_btf(), 0,
				       BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!scratch)
		return AGAIN;
	if (scratch->session != ctx->meta->session_id) {
		scratch->session = ctx->meta->session_id;
		scratch->told = 0;
		scratch->last.dentry = 0;
	}
	mm = GET(vma, vm_mm);
	out.start = GET(vma, vm_start);
	out.end = GET(vma, vm_end);
	out.vm_flags = GET(vma, vm_flags);
	out.start_brk = GET(mm, start_brk);
	out.brk = GET(mm, brk);
	out.start_stack = GET(mm, start_stack);
	out.others = GET(mm, mm_users.counter) - GET(GET(task, signal), nr_threads);
	if (GET(task, vfork_done)) {
		struct task_struct *parent = GET(task, real_parent);
		s32 threads = GET(GET(parent, signal), nr_threads);

		out.flags |= CW_MAPPING_VFORK;
		/* whoever looks at it in /proc right now counts as well; the iterator always does */
		if (GET(parent, mm) == mm && out.others > threads + 1)
			out.others = threads + 1;
	}
	if (GET(vma, anon_vma))
		out.flags |= CW_MAPPING_ANON_VMA;
	file = GET(vma, vm_file);
	if (file) {
		out.pgoff = GET(vma, vm_pgoff);
		size = fill_file(&out, scratch, &key, file);
	} else if (GET(vma, vm_ops) && GET(GET(vma, vm_ops), name)) {
		out.flags |= CW_MAPPING_SPECIAL;
		size = special_name(scratch->bytes, vma);
	}
	if (size < 0 || size > CW_PAGE)
		size = -1;
	out.path_size = size;
	out.size = sizeof(out) + (size > 0 ? size : 0);
	if (bpf_seq_write(ctx->meta->seq, &out, sizeof(out)))
		return 0;
	ONE_REGISTER(size);
	if (size > 0 && size <= CW_PAGE &&
	    bpf_seq_write(ctx->meta->seq, scratch->bytes, size))
		return 0;
	if (key.dentry)
		remember(scratch, &key, size);
	return 0;
}

#endif
