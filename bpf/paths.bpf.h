/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * The names of mappings, and how many of them are told. Part of coreward.bpf.c, not a header for
 * others.
 */
#ifndef COREWARD_PATHS_H
#define COREWARD_PATHS_H

/* Which path it is, beyond its bytes. A file may be opened often, so its struct file tells nothing. */
struct cw_path_key {
	u64 dentry;
	u64 mnt;
	u64 inode;
};

struct cw_path_scratch {
	char bytes[CW_PAGE];
	u64 session;           /* the listing that the rest is about */
	u64 told;              /* bytes of paths that its records have */
	struct cw_path_key last; /* of the last one */
};

/* Of the reader, as xstate_scratch. */
TASK_MAP(path_scratch, struct cw_path_scratch);

/* [vdso] and its like: the kernel keeps the name in a struct vm_special_mapping. */
FN int special_name(char *out, struct vm_area_struct *vma)
{
	const char *name = 0;

	bpf_probe_read_kernel(&name, sizeof(name), READ(vma, vm_private_data));
	return bpf_probe_read_kernel_str(out, CW_NAME_MAX, name);
}

/* bpf_d_path() names only files that the verifier knows; this one it does not. */
FN int walked_path(char *bytes, const struct cw_path_key *key)
{
	struct task_struct *reader = (void *)bpf_get_current_task_btf();
	struct fs_struct *fs = READ(reader, fs);

	return copy_path((struct cw_path *)bytes, key->dentry, key->mnt,
			 fs ? (u64)ADDRESS(fs, root) : 0);
}

/* What user space knows of a file of an overlay. */
FN void fill_walked(struct cw_mapping *out, struct dentry *dentry)
{
	struct inode *inode = READ(dentry, d_inode);
	struct super_block *super = READ(inode, i_sb);

	out->inode = READ(inode, i_ino);
	out->dev = READ(super, s_dev);
	out->flags |= CW_MAPPING_PATH_WALK;
	if (!READ(dentry, d_hash.pprev))
		out->flags |= CW_MAPPING_DELETED;
}

/*
 * Paths are the process's choice, 4 KiB for each of its mappings: of 65,000 that were 250 MB in the
 * reader, and a quarter of a second, while all that is not a path is 88 bytes. So a path is not told
 * again for the mapping behind it, whatever anonymous ones are in between, and all together have a
 * bound, which is one of time as well: making a path takes as long as it is.
 */
FN u32 untold(const struct cw_path_scratch *scratch, const struct cw_path_key *key)
{
	if (scratch->last.dentry == key->dentry && scratch->last.mnt == key->mnt &&
	    scratch->last.inode == key->inode)
		return CW_MAPPING_SAME;
	return scratch->told < CW_PATHS_MAX ? 0 : CW_MAPPING_UNNAMED;
}

/* A record that the kernel had no room for comes again, so this is for those that went out. */
FN void remember(struct cw_path_scratch *scratch, const struct cw_path_key *key, s64 size)
{
	scratch->told += size > 0 ? size : CW_PAGE; /* one that is too long takes its time, too */
	scratch->last = *key;
}

#endif
