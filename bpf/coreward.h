/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * The contract between the BPF programs and their readers: what is in the ring and in the
 * iterators' output. Fixed-width fields in their natural alignment, no implicit padding;
 * collector/probe/events.py and collector/probe/iterators.py read the same bytes. Any change
 * here raises CW_FORMAT.
 *
 * It is not an interface to anything outside of this project.
 */
#ifndef COREWARD_H
#define COREWARD_H

#define CW_FORMAT 8

#define CW_COMM 16
#define CW_NAME_MAX 256    /* NAME_MAX and the terminating zero */
#define CW_PATH 768        /* a path may be a little longer than 512 bytes */
#define CW_PATH_STEPS 24   /* path components and mount points on the way to the root */
#define CW_ARGS 512        /* of a process's arguments */
#define CW_PAGE 4096
#define CW_RED_ZONE 128    /* below sp, still in use (x86-64 ABI) */
#define CW_STACK_PAGES 8   /* 32 KiB */
#define CW_PT_REGS 21      /* words of struct pt_regs: r15 .. ss */
#define CW_USER_REGS 27    /* and fs_base, gs_base, ds, es, fs, gs: struct user_regs_struct */
#define CW_SIGINFO 48      /* sizeof(struct kernel_siginfo); user space sees it padded to 128 */
#define CW_BUILD_ID 20
#define CW_XSTATE_MAX 12288
#define CW_RING_BYTES (16 << 20)
#define CW_RING_BIG (4 << 20) /* stacks and mappings are told while less than this waits to be read */
#define CW_PATHS_MAX (1 << 20) /* bytes of paths that are told of the mappings of one process */
#define CW_PROCESSES 4096  /* processes that are remembered between two of their events */

enum cw_event_type {
	CW_EVENT_FATAL = 1,
	CW_EVENT_EXIT = 2,
	CW_EVENT_OOM = 3,
	CW_EVENT_MAPPED = 4,
	CW_EVENT_SIGNAL = 5,   /* as CW_EVENT_FATAL, without the stack */
	CW_EVENT_KILLER = 6,   /* who sent the signal of the next one of that process */
};

/* Indices of the map `counters`; each is a u64 that only grows. */
enum cw_counter {
	CW_DROPPED_EXIT,
	CW_DROPPED_OOM,
	CW_DROPPED_MAPPED,
	CW_HANDLED,
	CW_FATAL,
	CW_TALLIED,            /* deaths that are in `tallies` only */
	CW_UNTALLIED,          /* and those for which there was no room even there */
	CW_DROPPED_ARMED,      /* threads of armed processes: `armed_ring` had no room */
	CW_DROPPED_STARTED,    /* processes that execve or fork has made, of which the reader is not told */
	CW_COUNTERS
};

/* Indices of the map `settings`. */
enum cw_setting {
	CW_WANT_EXITS,
	CW_HAS_HANDOFF,        /* a reader takes what dumps core: no mappings are told of that */
	CW_ARMING,             /* processes are armed: `armed` is looked up, and execve is told */
	CW_LOAD_FPU,           /* TIF_NEED_FPU_LOAD <asm/thread_info.h>, a bit that moved in 6.18; 0: not known */
	CW_SETTINGS
};

/* Why mapped objects of a process that ended were not told, or not all of them. */
enum cw_unmapped {
	CW_ALL_MAPPED,
	CW_UNMAPPED_RING,      /* too much waits to be read: deaths come first */
	CW_UNMAPPED_MANY,      /* there are more than are told of one process */
};

struct cw_sender {
	__u64 target_start_ns; /* which process of this pid was meant */
	__u32 pid;
	__u32 uid;
	__s32 signal;          /* 0: there is no sender */
	__u32 reserved;
	char comm[CW_COMM];
};

struct cw_fault {
	__u64 start_ns;        /* of the process, and how often it has exec'ed: which program */
	__u64 exec_id;
	__u64 time_ns;         /* 0: there is no fault */
	__u64 addr;
	__u64 ip;
	__u64 sp;
	__u32 tid;
	__s32 signal;
	__s32 code;
	__u32 reserved;
};

/* Ids count up from 1 in each hierarchy. */
#define CW_CGROUP_V1 (1ULL << 63)

/* A process is named by pid and start time; ids are those of the initial namespaces but for ns_*. */
struct cw_who {
	__u64 start_ns;
	__u64 cgroup_id;       /* of cgroup v2; with CW_CGROUP_V1: of the memory controller's of v1 */
	__u32 pid;
	__u32 tid;
	__u32 ns_pid;
	__u32 ns_tid;
	__u32 ppid;
	__u32 uid;
	__u32 gid;
	__s32 exe_len;         /* bytes of exe in use; negative: not known */
	char comm[CW_COMM];    /* of the thread group's leader: the process's name */
	char exe[CW_PATH];     /* components with a zero behind each, the last one first */
};

struct cw_event {
	__u32 type;            /* enum cw_event_type */
	__u32 size;            /* of the whole record */
	__u64 time_ns;         /* CLOCK_BOOTTIME */
	struct cw_who who;
	struct cw_sender sender;
	struct cw_fault fault;
};

/* In what circumstances a fatal signal was sent. */
enum cw_sent {
	CW_SENT_BARE = 1,      /* by the kernel in the sender's name: it passed no siginfo */
	CW_SENT_BY_KERNEL = 2, /* by the kernel itself; the sender is the task that ran, which may be any */
	CW_SENT_LEAVING = 4,   /* the sender was exiting */
	CW_SENT_TO_SELF = 8,
	CW_SENT_REAPER = 16,   /* the sender is the first process of its pid namespace */
	CW_SENT_TRACER = 32,   /* the sender traces it, with PTRACE_O_EXITKILL */
	CW_SENT_CPU_LIMIT = 64, /* the target has a hard limit of CPU time: RLIMIT_CPU */
	CW_SENT_RT_LIMIT = 128, /* the same of RLIMIT_RTTIME */
	CW_SENT_PARENT = 256,  /* the sender is the target's parent, at this moment */
};

/* Who sent a fatal signal, as he was at that moment. */
struct cw_killer {
	__u32 type;
	__u32 size;
	__u64 time_ns;
	__u64 target_start_ns; /* whom he killed */
	__u32 target_pid;
	__s32 signal;
	__s32 code;            /* si_code; 0 without siginfo */
	__u32 flags;           /* enum cw_sent */
	__u64 parent_start_ns; /* of the sender's parent, who.ppid */
	char parent_comm[CW_COMM];
	struct cw_who who;
	__s32 args_len;        /* bytes of args in use; negative: they were not in memory */
	__u32 args_size;       /* of all his arguments */
	char args[CW_ARGS];    /* each with a zero behind it, proc_pid_cmdline(5) */
};

struct cw_exit {
	struct cw_event event;
	__u32 status;          /* as wait(2) gives it */
	__u32 oom;             /* 1: the OOM killer had chosen it */
	__u32 unmapped;        /* enum cw_unmapped: mapped objects that were not told */
	__u32 reserved;
};

#define CW_OOM_LEVELS 16   /* of the victim's memory cgroup, from its own upwards */

struct cw_oom_level {
	__u64 cgroup_id;
	__u64 usage;           /* pages */
	__u64 limit;           /* pages */
	__u64 failcnt;         /* charges that did not fit; not counted in v2 since 6.12 */
};

struct cw_oom {
	struct cw_event event;
	__u32 level_count;
	__u32 reserved;
	struct cw_oom_level levels[CW_OOM_LEVELS];
};

enum cw_told {
	CW_TOLD_INFO = 1,      /* info holds what the kernel passed */
	CW_TOLD_CORE_BYTE = 2, /* RLIMIT_CORE is one byte: core(5) has no pipe run for it */
};

struct cw_signal {
	struct cw_event event;
	__s32 signal;
	__u32 told;            /* enum cw_told */
	char thread_comm[CW_COMM];
	__u8 info[CW_SIGINFO];
	__u64 regs[CW_USER_REGS];
	__u32 trap;            /* of the last exception of the thread, and its error code (SDM 3, 6.15) */
	__u32 trap_error;
	__s32 site_status;     /* enum bpf_stack_build_id_status, or a negative error */
	__u8 site_build_id[CW_BUILD_ID];
	__u64 site_offset;
	__u64 stack_base;      /* address of stack[0], page aligned */
	__u64 stack_valid;     /* bit n: page n was readable */
};

struct cw_fatal {
	struct cw_signal signal;
	__u8 stack[CW_STACK_PAGES * CW_PAGE];
};

/*
 * How much of a death is told. A share of the ring belongs to each program, and to each owner: see
 * share.bpf.h. Whoever has used up his is counted.
 */
enum cw_telling {
	CW_TELL_COUNT,         /* in `tallies` only: no record in the ring, also not of its exit */
	CW_TELL_SMALL,
	CW_TELL_BIG,           /* with its stack, and at its exit its mappings */
};

/* Of the map `dying`: a process that gets a fatal signal and has not left yet. */
struct cw_dying {
	__u64 start_ns;
	__u32 telling;         /* enum cw_telling */
	__u32 reserved;
};

/* Whose deaths have a share of their own. */
struct cw_program {
	__u64 inode;           /* of the executable; with dev 0: all of the owner's together */
	__u64 cgroup_id;       /* of root's and of containers; 0: the owner alone counts */
	__u32 dev;
	__u32 owner;           /* uid in the initial namespace */
};

struct cw_tally_key {
	struct cw_program program;
	__u32 signal;          /* 0: it exited */
	__u32 reserved;
};

#define CW_TALLY_PIDS 64   /* a power of two */

/* Deaths of one kind that were only counted. An entry only grows; whoever reads it may remove it when
 * nothing has been added for long. */
struct cw_tally {
	__u64 count;
	__u64 first_ns;        /* CLOCK_BOOTTIME */
	__u64 last_ns;
	struct cw_who who;     /* the first one */
	struct cw_sender sender; /* its */
	__u32 pids[CW_TALLY_PIDS]; /* the last ones, that of number n at n modulo CW_TALLY_PIDS */
};

/* A mapped object of a process that ends without a hand-off: its own record, before the exit's. */
struct cw_mapped {
	__u32 type;
	__u32 size;
	__u64 time_ns;
	__u64 start_ns;        /* of the process */
	__u32 pid;
	__s32 path_len;        /* bytes of path in use; negative: not known */
	__u64 start;
	__u64 end;
	__u64 offset;          /* in the file, bytes */
	__u32 vm_flags;
	__u32 reserved;
	char path[CW_PATH];    /* like cw_who.exe */
};

/* One thread of the iterator `threads`, followed by xstate_size bytes of its XSAVE area. */
struct cw_thread {
	__u32 size;            /* of this record with the XSAVE area */
	__u32 tid;             /* initial namespace */
	__u32 tgid;
	__u32 ns_tid;          /* as the thread itself sees it and its relations, 0: it does not */
	__u32 ns_ppid;
	__u32 ns_pgrp;
	__u32 ns_sid;
	__u32 state;           /* task_struct.__state */
	char comm[CW_COMM];
	__u64 sigpend;
	__u64 sighold;
	__u64 utime;           /* ns; own */
	__u64 stime;
	__u64 group_utime;     /* ns; of the threads that have ended */
	__u64 group_stime;
	__u64 cutime;          /* ns; of the children that were waited for */
	__u64 cstime;
	__u64 clear_child_tid; /* address */
	__u64 robust_list;     /* address */
	__u64 regs[CW_USER_REGS];
	__u64 xfeatures;       /* components that user space may have in its XSAVE area */
	__u32 pkru;
	__u32 xstate_size;     /* bytes behind this record; 0: could not be read */
};

enum cw_mapping_flag {
	CW_MAPPING_FILE = 1,
	CW_MAPPING_ANON_VMA = 2,
	CW_MAPPING_SPECIAL = 4,   /* named by the kernel; path holds the name if it could be read */
	CW_MAPPING_PATH_WALK = 8, /* path is like cw_who.exe; else it is one string */
	CW_MAPPING_DELETED = 16,  /* a path of the former kind, and the file is unlinked */
	CW_MAPPING_OWN_FS = 32,   /* the kernel itself answers for the file: nobody can let it wait */
	CW_MAPPING_VFORK = 64,    /* of vfork(2): the parent, whose memory it is, waits */
	CW_MAPPING_SAME = 128,    /* no path: it is that of the last file that came with one, or with none */
	CW_MAPPING_UNNAMED = 256, /* no path: those before it have used up CW_PATHS_MAX */
};

/* One mapping of the iterator `mappings`, followed by path_size bytes. */
struct cw_mapping {
	__u32 size;            /* of this record with the path */
	__u32 flags;           /* enum cw_mapping_flag */
	__u64 start;
	__u64 end;
	__u64 vm_flags;
	__u64 pgoff;           /* pages */
	__u64 inode;
	__u32 dev;             /* major << 20 | minor */
	__u32 nlink;
	__u64 start_brk;       /* of the process; the same in each record */
	__u64 brk;
	__u64 start_stack;
	__s32 path_size;       /* bytes behind this record; negative: the path cannot be had */
	__s32 others;          /* users of the memory beside its threads; the reader is one */
};

/*
 * Armed processes: the reader holds their memory while they live. When one ends each of its threads is
 * told, with its registers, in a ring of its own; and what it execs or forks.
 */
#define CW_ARMED_RING_BYTES (4 << 20)
#define CW_ARMED_RING_BIG (1 << 20) /* what was started is told while less than this waits to be read */
#define CW_ARMED_ENTRIES 4096
#define CW_TICK_NS 10000000ULL /* as /proc/PID/stat counts times */
#define CW_XSTATE_USUAL 832    /* up to and including AVX */
#define CW_XSTATE_LARGE 2816   /* and AVX-512; what is larger is not told */

enum cw_armed_flag {
	CW_ARMED_EXIT = 1,     /* its exit is reported whatever CW_WANT_EXITS says */
	CW_ARMED_CHILDREN = 2, /* what it forks is armed as well */
	CW_ARMED_BY_FORK = 4,  /* the reader has not armed it yet: it holds none of its memory */
};

/* Of the map `armed`, by pid. */
struct cw_armed {
	__u64 start_tick;      /* start time in CW_TICK_NS: which process of this pid */
	__u32 flags;           /* enum cw_armed_flag */
	__u32 dropped;         /* threads that there was no room for */
};

enum cw_armed_type {
	CW_ARMED_THREAD = 1,
	CW_ARMED_EXEC = 2,
	CW_ARMED_FORK = 3,
};

struct cw_armed_event {
	__u32 type;            /* enum cw_armed_type */
	__u32 size;            /* of the record as it was reserved */
	__u64 start_ns;        /* of the process */
	__u32 pid;
	__u32 parent;          /* of CW_ARMED_FORK */
};

/* A word of memory that the exit of a thread changes, as it was before. */
struct cw_armed_word {
	__u64 address;         /* 0: there is none */
	__u32 value;
	__u32 reserved;
};

#define CW_ARMED_WORDS 8   /* the first is that at thread.clear_child_tid, the others are robust futexes */

/* A thread of an armed process as it leaves, followed by room for an XSAVE area. */
struct cw_armed_thread {
	struct cw_armed_event event;
	__u32 told;            /* enum cw_armed_told */
	__u32 reserved;
	struct cw_armed_word words[CW_ARMED_WORDS];
	struct cw_thread thread;
};

enum cw_armed_told {
	CW_ARMED_NO_XSTATE = 1, /* it ran: its XSAVE area is in the CPU */
	CW_ARMED_MORE_WORDS = 2, /* it holds more robust futexes than there are words */
};

#define CW_TREE_DEPTH 8

/* How far a walk over the mappings of an address space is: see tree.bpf.h. */
struct cw_tree {
	__u64 mm;
	__u64 depth;
	__u64 nodes[CW_TREE_DEPTH];
	__u32 slots[CW_TREE_DEPTH]; /* the next one of each node */
};

/* Of the map `armed_walk`, of one entry: a walk over the mappings of an address space that outlives its
 * process, which somebody pins. The reader writes `fd` and zeros, and reads the iterator until `done`;
 * if that is 1 from the beginning no mappings are told. */
struct cw_armed_walk {
	__u32 fd;              /* of the reader: /proc/PID/mem, opened while the process was there */
	__u32 begun;
	__u32 done;
	__s32 users;           /* of the address space */
	__u64 thread_flags;    /* thread_info.flags of the thread that the iterator is of */
	__u64 files;           /* pages; of many CPUs, each may have some that are not counted yet */
	__u64 anonymous;
	__u64 shared;
	__u64 swapped;
	struct cw_tree tree;   /* the rest is the walk's own */
	__u64 said;            /* bytes in this reading */
	__u64 told;            /* bytes of paths */
	__u64 last_dentry;     /* of the last path */
	__u64 last_mnt;
};

#endif
