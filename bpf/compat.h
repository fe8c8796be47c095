/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * Everything that differs between the two loaders, and between kernels. No logic of its own.
 *
 * CO-RE (libbpf): vmlinux.h has preserve_access_index on all types, so each `&p->f` is
 * relocated when the object is loaded.
 * bcc (COREWARD_BCC): the types are those of the running kernel itself. Before bcc sees the
 * source, collector/probe/bccload.py spells the map helpers as bcc's methods, because bcc's
 * rewriter does not look into macros.
 */
#ifndef COREWARD_COMPAT_H
#define COREWARD_COMPAT_H

#define FN static inline __attribute__((always_inline))

#ifdef COREWARD_BCC

#define SUBPROGRAM FN
#define ON_LEAVING(name) int name(u64 *ctx)
#define ON_EVENT(tracepoint) int raw_tracepoint__##tracepoint(struct bpf_raw_tracepoint_args *ctx)
#define ITERATE(target, name) int bpf_iter__##target(struct bpf_iter__##target *ctx)
#define ITERATE_ALSO(target, name) int name(struct bpf_iter__##target *ctx)
#define ON_CLOCK(name) int name(struct bpf_perf_event_data *ctx)
#define HASH_MAP(name, key_type, value_type, entries) \
	BPF_TABLE("lru_hash", key_type, value_type, name, entries)
#define KEPT_MAP(name, key_type, value_type, entries) \
	BPF_TABLE("hash", key_type, value_type, name, entries)
#define ARRAY_MAP(name, value_type, entries) BPF_TABLE("array", u32, value_type, name, entries)
#define PER_CPU_MAP(name, value_type) BPF_TABLE("percpu_array", u32, value_type, name, 1)
#define TASK_MAP(name, value_type) BPF_TASK_STORAGE(name, value_type)
#define RING_MAP(name, bytes) BPF_RINGBUF_OUTPUT(name, (bytes) / 4096)
/* bcc has no method for it, and tells no mappings: the shares alone keep stacks from filling the ring. */
#define WAITING_BYTES(ring) 0
#define OFFSET_OF(type, field) __builtin_offsetof(type, field)
/* Offsets are taken by the compiler's front end, which is proved right (btf.py): bcc compiles for
 * x86 and then makes BPF of it, whose wide integers are aligned differently. */
#define ADDRESS(p, field) \
	((typeof(&(p)->field))((char *)(p) + __builtin_offsetof(typeof(*(p)), field)))

#else /* CO-RE */

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define SUBPROGRAM __attribute__((noinline))
#define ON_LEAVING(name) SEC("fentry/exit_mm_release") int name(u64 *ctx)
#define ON_EVENT(tracepoint) \
	SEC("raw_tp/" #tracepoint) int tracepoint(struct bpf_raw_tracepoint_args *ctx)
#define ITERATE(target, name) SEC("iter/" #target) int name(struct bpf_iter__##target *ctx)
#define ITERATE_ALSO(target, name) ITERATE(target, name) /* bcc has room for one of a target */
#define ON_CLOCK(name) SEC("perf_event") int name(struct bpf_perf_event_data *ctx)
#define MAP_OF(map_type, name, key_type, value_type, entries) \
	struct { \
		__uint(type, map_type); \
		__uint(max_entries, entries); \
		__type(key, key_type); \
		__type(value, value_type); \
	} name SEC(".maps")
#define HASH_MAP(name, key_type, value_type, entries) \
	MAP_OF(BPF_MAP_TYPE_LRU_HASH, name, key_type, value_type, entries)
#define KEPT_MAP(name, key_type, value_type, entries) \
	MAP_OF(BPF_MAP_TYPE_HASH, name, key_type, value_type, entries)
#define ARRAY_MAP(name, value_type, entries) \
	MAP_OF(BPF_MAP_TYPE_ARRAY, name, u32, value_type, entries)
#define PER_CPU_MAP(name, value_type) MAP_OF(BPF_MAP_TYPE_PERCPU_ARRAY, name, u32, value_type, 1)
#define TASK_MAP(name, value_type) \
	struct { \
		__uint(type, BPF_MAP_TYPE_TASK_STORAGE); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, int); \
		__type(value, value_type); \
	} name SEC(".maps")
#define RING_MAP(name, bytes) \
	struct { \
		__uint(type, BPF_MAP_TYPE_RINGBUF); \
		__uint(max_entries, bytes); \
	} name SEC(".maps")
#define WAITING_BYTES(ring) bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA)
#define OFFSET_OF(type, field) \
	__builtin_preserve_field_info(((type *)0)->field, BPF_FIELD_BYTE_OFFSET)
#define ADDRESS(p, field) (&(p)->field)

char _license[] SEC("license") = "Dual BSD/GPL";

#endif

/* The compiler keeps loads before it before loads behind it, as x86 does. */
#define IN_THIS_ORDER asm volatile("" ::: "memory")

/* The verifier of 6.1 forgets what a comparison has told of a number when the compiler keeps the
 * number in another register, or in half of one, where it is used. Around the comparison this
 * makes it one 64-bit register. */
#define ONE_REGISTER(number) asm volatile("" : "+r"(number))

/* A field of an object whose type the verifier knows (in iterators): a plain load. */
#define GET(p, field) (*ADDRESS(p, field))

/* The value of a kernel object's scalar field; 0 if it cannot be read. The comma makes the
 * type of the copy lose a `const` that the field may have. */
#define READ(p, field) \
	({ \
		typeof(((void)0, (p)->field)) value_ = 0; \
		bpf_probe_read_kernel(&value_, sizeof(value_), ADDRESS(p, field)); \
		value_; \
	})

/* The object that holds `p` as its member `field`. */
#define HOLDER_OF(p, type, field) ((type *)((char *)(p) - OFFSET_OF(type, field)))

/* mark_victim passes the task since 6.9 (and where that was ported back), its pid before. */
#define IS_KERNEL_POINTER(word) ((s64)(word) < 0)

/* struct fpu moved from thread_struct to the end of task_struct in 6.16. */
#ifdef COREWARD_BCC

FN struct fpu *task_fpu(struct task_struct *t)
{
#ifdef COREWARD_FPU_IN_THREAD
	return ADDRESS(t, thread.fpu);
#else
	return (struct fpu *)((char *)t + COREWARD_TASK_SIZE);
#endif
}

FN u64 robust_list(struct task_struct *t)
{
	return (u64)READ(t, robust_list);
}

#ifdef COREWARD_MEMORY_CGROUPS
#define HAS_MEMORY_CGROUP_TYPES 1
#define HAS_MEMORY_CGROUPS 1
#define MEMORY_CGROUP_ID memory_cgrp_id
#else
#define HAS_MEMORY_CGROUP_TYPES 0
#define HAS_MEMORY_CGROUPS 0
#define MEMORY_CGROUP_ID 0
#endif

FN struct path *backing_path(struct file *file)
{
#ifdef COREWARD_USER_PATH
	return ADDRESS((struct backing_file *)file, user_path);
#else
	return 0;
#endif
}

#else

/* Its number depends on what the kernel was built with (<linux/cgroup_subsys.h>). */
enum cgroup_subsys_id___any {
	memory_cgrp_id___any = 1,
};

#define HAS_MEMORY_CGROUP_TYPES 1
#define HAS_MEMORY_CGROUPS \
	bpf_core_enum_value_exists(enum cgroup_subsys_id___any, memory_cgrp_id___any)
#define MEMORY_CGROUP_ID bpf_core_enum_value(enum cgroup_subsys_id___any, memory_cgrp_id___any)

struct backing_file___since_6_8 {
	struct path user_path;
} __attribute__((preserve_access_index));

FN struct path *backing_path(struct file *file)
{
	struct backing_file___since_6_8 *backing = (void *)file;

	if (bpf_core_field_exists(struct backing_file___since_6_8, user_path))
		return &backing->user_path;
	return 0;
}

struct thread_struct___before_6_16 {
	struct fpu fpu;
} __attribute__((preserve_access_index));

struct task_struct___before_6_16 {
	struct thread_struct___before_6_16 thread;
} __attribute__((preserve_access_index));

FN struct fpu *task_fpu(struct task_struct *t)
{
	struct task_struct___before_6_16 *old = (void *)t;

	if (bpf_core_field_exists(struct thread_struct___before_6_16, fpu))
		return &old->thread.fpu;
	return (struct fpu *)((char *)t + bpf_core_type_size(struct task_struct));
}

struct task_struct___before_7 {
	void *robust_list;
} __attribute__((preserve_access_index));

struct futex_sched_data___since_7 {
	void *robust_list;
} __attribute__((preserve_access_index));

struct task_struct___since_7 {
	struct futex_sched_data___since_7 futex;
} __attribute__((preserve_access_index));

/* The head of a thread's robust list, which later kernels keep in a struct of its own; 0 where it is
 * somewhere else: then its futexes are in the core as the thread's end has left them. */
FN u64 robust_list(struct task_struct *t)
{
	struct task_struct___before_7 *old = (void *)t;
	struct task_struct___since_7 *now = (void *)t;

	if (bpf_core_field_exists(struct task_struct___before_7, robust_list))
		return (u64)READ(old, robust_list);
	if (bpf_core_field_exists(struct futex_sched_data___since_7, robust_list))
		return (u64)READ(now, futex.robust_list);
	return 0;
}

#endif

/* FMODE_BACKING <linux/fs.h> is one of these: it moved in 6.14, and where that was ported back. The
 * other has had several meanings. */
#define MAY_BE_BACKING (3U << 24)

/* Of a file on overlayfs the mapped one is a backing file (6.8); user space knows its user_path. 0:
 * it is none. What lies behind another kind of file is no path: its parts do not fit together. */
FN struct path *file_user_path(struct file *file)
{
	struct path *path = READ(file, f_mode) & MAY_BE_BACKING ? backing_path(file) : 0;
	struct super_block *super = path ? READ(READ(path, dentry), d_sb) : 0;

	return super && super == READ(READ(path, mnt), mnt_sb) ? path : 0;
}

#endif
