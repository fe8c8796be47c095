/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * Who may tell how much: nobody fills the ring for others. Part of coreward.bpf.c, not a header for
 * others.
 *
 * Each program (an executable of one owner) and each owner has a share in deaths per second, with a
 * burst. Within it a death is told by a record, the first ones with their stacks. Beyond it a death is
 * counted in `tallies`, to the last one. What one owner may have told at once is less than the ring
 * holds, and stacks have a part of the ring that they cannot leave.
 */
#ifndef COREWARD_SHARE_H
#define COREWARD_SHARE_H

#define CW_MS 1000000ULL
/* One in so many nanoseconds, and so many at once. */
#define CW_PROGRAM_EACH (50 * CW_MS)
#define CW_PROGRAM_MOST 1000
#define CW_OWNER_EACH (10 * CW_MS)
#define CW_OWNER_MOST 1500
#define CW_PROGRAM_STACK_EACH (1000 * CW_MS)
#define CW_PROGRAM_STACK_MOST 32
#define CW_OWNER_STACK_EACH (250 * CW_MS)
#define CW_OWNER_STACK_MOST 64

#define CW_SHARES 16384
#define CW_TALLIES 2048
#define CW_COUNTED 32768   /* deaths between their signal and the reader's look at their hand-off */
#define CW_NAMESPACES 32   /* levels of user namespaces that the kernel allows */

/* Until when all of a share is used up, were it used up evenly; a time of the past: none of it is. */
struct cw_share {
	u64 small_ns;
	u64 big_ns;
};

HASH_MAP(shares, struct cw_program, struct cw_share, CW_SHARES);
HASH_MAP(counted, u32, u64, CW_COUNTED);
KEPT_MAP(tallies, struct cw_tally_key, struct cw_tally, CW_TALLIES);
PER_CPU_MAP(fresh_tally, struct cw_tally);

/*
 * Whose process this is. A user who makes a user namespace has 65,536 ids in it, and may make cgroups:
 * it is still one user. What root has made (a unit, a container) goes by its cgroup.
 */
FN void fill_owner(struct cw_program *program, struct task_struct *t)
{
	const struct cred *cred = READ(t, cred);
	struct user_namespace *ns = READ(cred, user_ns);
	struct css_set *cgroups = READ(t, cgroups);
	struct cgroup *cgroup = READ(cgroups, dfl_cgrp);
	struct kernfs_node *node = READ(cgroup, kn);
	struct pid *pid = READ(t, thread_pid);
	int level = READ(ns, level);

	program->owner = READ(cred, uid.val);
	program->cgroup_id = READ(node, id);
	if (level > 0) {
		for (int step = 0; step < CW_NAMESPACES; step++) {
			if (READ(ns, level) <= 1)
				break;
			ns = READ(ns, parent);
		}
		program->owner = READ(ns, owner.val);
		if (program->owner)
			program->cgroup_id = 0;
	} else if (program->owner && !READ(pid, level)) {
		program->cgroup_id = 0;
	}
}

/* Before 6.16 a process that exits has no executable any more: then its owner's share counts alone. */
FN void fill_program(struct cw_program *program, struct task_struct *t)
{
	struct mm_struct *mm = READ(t, mm);
	struct file *file = mm ? READ(mm, exe_file) : 0;
	struct inode *inode = file ? READ(file, f_inode) : 0;
	struct super_block *super = inode ? READ(inode, i_sb) : 0;

	fill_owner(program, t);
	program->inode = inode ? READ(inode, i_ino) : 0;
	program->dev = super ? READ(super, s_dev) : 0;
}

FN struct cw_share *share_of(struct cw_program *program)
{
	struct cw_share *found = bpf_map_lookup_elem(&shares, program);
	struct cw_share none = {};

	if (found)
		return found;
	bpf_map_update_elem(&shares, program, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&shares, program);
}

FN int has_room(u64 until, u64 now, u64 each, u64 most)
{
	return until <= now + each * (most - 1);
}

FN u64 used(u64 until, u64 now, u64 each)
{
	return (until > now ? until : now) + each;
}

/*
 * How a death of this program is told; charged to its shares. If it is the owner's that is used up,
 * `program` becomes all of the owner's. Two CPUs may charge one where both took some: a share is that
 * much larger then.
 */
FN u32 weigh(struct cw_program *program, int may_be_big)
{
	struct cw_program all = {};
	struct cw_share *own, *owners;
	u64 now = bpf_ktime_get_boot_ns();

	all.cgroup_id = program->cgroup_id;
	all.owner = program->owner;
	owners = share_of(&all);
	own = share_of(program);
	if (!own || !owners)
		return CW_TELL_SMALL;
	if (!has_room(owners->small_ns, now, CW_OWNER_EACH, CW_OWNER_MOST)) {
		*program = all;
		return CW_TELL_COUNT;
	}
	if (!has_room(own->small_ns, now, CW_PROGRAM_EACH, CW_PROGRAM_MOST))
		return CW_TELL_COUNT;
	owners->small_ns = used(owners->small_ns, now, CW_OWNER_EACH);
	if (program->inode)
		own->small_ns = used(own->small_ns, now, CW_PROGRAM_EACH);
	if (!may_be_big || WAITING_BYTES(ring) > CW_RING_BIG ||
	    !has_room(owners->big_ns, now, CW_OWNER_STACK_EACH, CW_OWNER_STACK_MOST) ||
	    !has_room(own->big_ns, now, CW_PROGRAM_STACK_EACH, CW_PROGRAM_STACK_MOST))
		return CW_TELL_SMALL;
	owners->big_ns = used(owners->big_ns, now, CW_OWNER_STACK_EACH);
	if (program->inode)
		own->big_ns = used(own->big_ns, now, CW_PROGRAM_STACK_EACH);
	return CW_TELL_BIG;
}

FN struct cw_tally *tally_of(struct cw_tally_key *kind, struct task_struct *t, u64 now)
{
	struct cw_tally *found = bpf_map_lookup_elem(&tallies, kind), *fresh;
	u32 zero = 0;

	if (found)
		return found;
	fresh = bpf_map_lookup_elem(&fresh_tally, &zero);
	if (!fresh)
		return 0;
	fresh->count = 0;
	fresh->first_ns = now;
	fill_who(&fresh->who, t);
	fill_sender(&fresh->sender, &fresh->who, kind->signal);
	bpf_map_update_elem(&tallies, kind, fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&tallies, kind);
}

/* A death that is told in no other way. */
FN void tally(struct cw_tally_key *kind, struct task_struct *t)
{
	u64 now = bpf_ktime_get_boot_ns();
	struct cw_tally *found = tally_of(kind, t, now);

	if (!found) {
		count(CW_UNTALLIED);
		return;
	}
	found->pids[found->count & (CW_TALLY_PIDS - 1)] = READ(t, tgid);
	found->last_ns = now;
	__sync_fetch_and_add(&found->count, 1);
	count(CW_TALLIED);
}

#endif
