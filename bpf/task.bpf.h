/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * Who a task is: its ids, its path, its segment registers. What the programs for deaths and the
 * iterators share; part of coreward.bpf.c, not a header for others.
 */
#ifndef COREWARD_TASK_H
#define COREWARD_TASK_H

/* <linux/sched.h>: task_struct.flags */
#define CW_PF_EXITING 0x4
#define CW_PF_IO_WORKER 0x10
#define CW_PF_USER_WORKER 0x4000
/* Tasks of a process that a core does not show: those that leave, and the kernel's own helpers. */
#define NO_THREAD (CW_PF_EXITING | CW_PF_IO_WORKER | CW_PF_USER_WORKER)

FN u32 id_in_namespace(struct pid *pid, u32 level, struct pid_namespace *ns)
{
	struct upid id = {};

	if (!pid || READ(pid, level) < level)
		return 0;
	bpf_probe_read_kernel(&id, sizeof(id), ADDRESS(pid, numbers[0]) + level);
	return id.ns == ns || !ns ? id.nr : 0;
}

struct cw_path {
	char bytes[CW_PATH];
};

/*
 * Components of a path, last one first, each with its terminating zero; the bytes used, or < 0.
 * A function that the verifier looks at once, not at each of its calls: inside of a loop over
 * mappings 6.12 gives up. Such functions take pointers to kernel objects as numbers.
 */
SUBPROGRAM int copy_path(struct cw_path *out, u64 dentry_at, u64 mnt_at, u64 root_at)
{
	struct dentry *dentry = (void *)dentry_at;
	struct vfsmount *mnt = (void *)mnt_at;
	struct path *root = (void *)root_at;
	struct dentry *root_dentry = root ? READ(root, dentry) : 0;
	struct vfsmount *root_mnt = root ? READ(root, mnt) : 0;
	u64 used = 0; /* 64 bits: without 32-bit instructions the verifier would lose its bounds */

	if (!out)
		return -1;
	for (int step = 0; step < CW_PATH_STEPS; step++) {
		if (!(((u64)dentry ^ (u64)root_dentry) | ((u64)mnt ^ (u64)root_mnt)))
			return used; /* one branch: the verifier follows each on its own */
		if (dentry == READ(mnt, mnt_root)) {
			struct mount *here = HOLDER_OF(mnt, struct mount, mnt);
			struct mount *above = READ(here, mnt_parent);

			if (above == here)
				return used;
			dentry = READ(here, mnt_mountpoint);
			mnt = ADDRESS(above, mnt);
		} else {
			struct dentry *parent = READ(dentry, d_parent);
			long n;

			ONE_REGISTER(used);
			if (used > CW_PATH - CW_NAME_MAX)
				return -1;
			ONE_REGISTER(used);
			n = bpf_probe_read_kernel_str(out->bytes + used, CW_NAME_MAX,
						      READ(dentry, d_name.name));
			if (n <= 1)
				return -1;
			used += n;
			if (parent == dentry)
				return used; /* in no directory: a memfd, say */
			dentry = parent;
		}
	}
	return -1;
}

FN void fill_exe(struct cw_who *who, struct task_struct *t)
{
	struct mm_struct *mm = READ(t, mm);
	struct fs_struct *fs = READ(t, fs);
	struct file *file = mm ? READ(mm, exe_file) : 0;

	who->exe_len = -1;
	if (file)
		who->exe_len = copy_path((struct cw_path *)who->exe, (u64)READ(file, f_path.dentry),
					 (u64)READ(file, f_path.mnt),
					 fs ? (u64)ADDRESS(fs, root) : 0);
}

/*
 * The cgroup of a task: that of v2, unless it is in its root and in another one of the v1 hierarchy of
 * the memory controller, as on hosts whose controllers are mounted the old way.
 */
FN u64 cgroup_of(struct task_struct *t)
{
	struct css_set *cgroups = READ(t, cgroups);
	struct cgroup *unified = READ(cgroups, dfl_cgrp), *memory;
	struct cgroup_subsys_state *state = 0;

	if (READ(unified, level) || !HAS_MEMORY_CGROUPS)
		return READ(READ(unified, kn), id);
	bpf_probe_read_kernel(&state, sizeof(state),
			      ADDRESS(cgroups, subsys[0]) + MEMORY_CGROUP_ID);
	memory = READ(state, cgroup);
	if (READ(memory, level) <= 0)
		return READ(READ(unified, kn), id);
	return READ(READ(memory, kn), id) | CW_CGROUP_V1;
}

FN void fill_who(struct cw_who *who, struct task_struct *t)
{
	struct task_struct *leader = READ(t, group_leader), *parent = READ(t, real_parent);
	struct signal_struct *signal = READ(t, signal);
	struct pid *pid = READ(t, thread_pid), *group = READ(signal, pids[PIDTYPE_TGID]);
	const struct cred *cred = READ(t, cred);
	u32 level = READ(pid, level);

	who->start_ns = READ(leader, start_boottime);
	who->cgroup_id = cgroup_of(t);
	who->pid = READ(t, tgid);
	who->tid = READ(t, pid);
	who->ns_pid = id_in_namespace(group, level, 0);
	who->ns_tid = id_in_namespace(pid, level, 0);
	who->ppid = READ(parent, tgid);
	who->uid = READ(cred, uid.val);
	who->gid = READ(cred, gid.val);
	bpf_probe_read_kernel(who->comm, CW_COMM, ADDRESS(leader, comm));
	fill_exe(who, t);
}

FN void fill_selectors(u64 *regs, struct task_struct *t)
{
	regs[CW_PT_REGS] = READ(t, thread.fsbase);
	regs[CW_PT_REGS + 1] = READ(t, thread.gsbase);
	regs[CW_PT_REGS + 2] = READ(t, thread.ds);
	regs[CW_PT_REGS + 3] = READ(t, thread.es);
	regs[CW_PT_REGS + 4] = READ(t, thread.fsindex);
	regs[CW_PT_REGS + 5] = READ(t, thread.gsindex);
}

#endif
