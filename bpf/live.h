/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * The contract between live.bpf.c and its reader, collector/probe/stacks.py: fixed-width fields in
 * their natural alignment, no implicit padding. Loaded and read by the same process, so there is
 * no format to negotiate. Needs coreward.h.
 */
#ifndef COREWARD_LIVE_H
#define COREWARD_LIVE_H

#define CW_LIVE_SP 19          /* word of rsp in struct user_regs_struct */
#define CW_CAUGHT_PAGES 9      /* of a thread that was caught running: 32 KiB from any sp on */
#define CW_CAUGHT_RING (1 << 20)
#define CW_CAUGHT_THREADS 4096 /* that are remembered as caught */

/* The value of the map `live_settings`, written by the reader. */
struct cw_live_settings {
	__u32 stack_pages;     /* at most so many of each thread that is caught */
	__u32 tgid;            /* whose threads are caught; 0: nobody's */
	__u32 round;           /* each thread is caught once per round */
};

enum cw_live_flag {
	CW_LIVE_ON_CPU = 1,    /* it ran when it was looked at: registers may be those of before */
	CW_LIVE_MOVED = 2,     /* it ran while its registers were copied */
	CW_LIVE_KERNEL = 4,    /* a thread of the kernel: no registers, no stack */
};

/* One thread of the iterator `states`. */
struct cw_live {
	__u64 time_ns;         /* CLOCK_MONOTONIC */
	__u64 process_start_ns; /* CLOCK_BOOTTIME */
	__u64 start_ns;        /* of the thread */
	__u32 tid;             /* initial namespace */
	__u32 tgid;
	__u32 ns_tid;          /* as the thread itself sees it */
	__u32 state;           /* task_struct.__state */
	__u32 flags;           /* enum cw_live_flag */
	__u32 cpu;             /* where it runs, or ran last */
	char comm[CW_COMM];
	__u64 utime;           /* ns; as accounted, often by ticks */
	__u64 stime;
	__u64 runtime;         /* ns on a CPU, exact up to the last tick */
	__u64 voluntary;       /* context switches */
	__u64 involuntary;
	__u64 regs[CW_USER_REGS];
};

/* One thread of the iterator `switches`. It has not run since its struct cw_live was made, if it
 * is not on a CPU, and has been switched as often. */
struct cw_switches {
	__u64 start_ns;        /* as in struct cw_live */
	__u64 switches;        /* voluntary and involuntary */
	__u32 tid;
	__u32 on_cpu;
};

/* One thread that was caught on its CPU: a record of the map `ring`. */
struct cw_caught {
	__u64 time_ns;         /* CLOCK_MONOTONIC */
	__u64 start_ns;        /* of the thread */
	__u32 tid;
	__u32 pages;
	__u32 round;
	__u32 reserved;
	__u64 regs[CW_USER_REGS];
	__u64 stack_base;
	__u8 stack[CW_CAUGHT_PAGES * CW_PAGE];
};

#endif
