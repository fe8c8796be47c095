/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * The mappings of an address space, by hand: they are the leaves of a maple tree, whose nodes are
 * named by pointers with their type in the low bits (<linux/maple_tree.h>, lib/maple_tree.c). Slots
 * that are not in use hold no pointer to the kernel. Depth first, by address. Part of coreward.bpf.c,
 * not a header for others.
 */
#ifndef COREWARD_TREE_H
#define COREWARD_TREE_H

/* <linux/maple_tree.h>: slots of a node; a tree of mappings with 65,530 leaves is 4 deep */
#define CW_RANGE_SLOTS 16
#define CW_ARANGE_SLOTS 10
#define NODE_OF(entry) ((entry) & ~255ULL)
#define NODE_TYPE(entry) ((entry) >> 3 & 15)

FN void begin_tree(struct cw_tree *tree, struct mm_struct *mm)
{
	tree->mm = (u64)mm;
	tree->depth = 0;
	tree->nodes[0] = (u64)READ(mm, mm_mt.ma_root);
	tree->slots[0] = 0;
}

/* Look at one slot; *vma is a mapping if it was one. 0: there are no more. */
FN int step_tree(struct cw_tree *tree, struct vm_area_struct **vma)
{
	u64 depth = tree->depth, entry, child = 0;
	u32 slot, slots;

	if (depth >= CW_TREE_DEPTH)
		return 0;
	entry = tree->nodes[depth];
	slot = tree->slots[depth]++;
	slots = NODE_TYPE(entry) == maple_arange_64 ? CW_ARANGE_SLOTS : CW_RANGE_SLOTS;
	if (slot >= slots) {
		tree->depth = depth - 1; /* below 0 it is larger than any depth: the end */
		return 1;
	}
	bpf_probe_read_kernel(&child, sizeof(child), (void *)(NODE_OF(entry) + slot * sizeof(child) +
		(NODE_TYPE(entry) == maple_arange_64 ? OFFSET_OF(struct maple_node, ma64.slot) :
						       OFFSET_OF(struct maple_node, mr64.slot))));
	if (!IS_KERNEL_POINTER(child))
		return 1;
	if (NODE_TYPE(entry) == maple_leaf_64) {
		if (READ((struct vm_area_struct *)child, vm_mm) == (void *)tree->mm)
			*vma = (struct vm_area_struct *)child;
		return 1;
	}
	depth++;
	if (depth >= CW_TREE_DEPTH)
		return 0;
	tree->nodes[depth] = child;
	tree->slots[depth] = 0;
	tree->depth = depth;
	return 1;
}

#endif
