/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * The contract between trace.bpf.c and its reader, collector/trace/layout.py: fixed-width fields
 * in their natural alignment, no implicit padding. Loaded and read by the same process, so there
 * is no format to negotiate. Times are ns of CLOCK_BOOTTIME; ids those of the initial namespace.
 */
#ifndef COREWARD_TRACE_H
#define COREWARD_TRACE_H

#define CW_CALL_ARGS 6
#define CW_CALL_TEXTS 3        /* of one call: strings and buffers that are copied */
#define CW_TEXT 1024           /* bytes of one of them, at most */
#define CW_TEXT_ROOM (CW_CALL_TEXTS * (CW_TEXT + 8))
#define CW_KEPT_CALLS 64       /* of a thread, in the mode `record`; a power of two */
#define CW_KEPT_TEXT 64        /* bytes of one text of a kept call */
#define CW_CALL_NUMBERS 512    /* system calls of one kind of code */
#define CW_NUMBER_WORDS 8      /* the same as bits of 64-bit words */
#define CW_TRACE_RULES 64
#define CW_TRACE_SIGINFO 48    /* sizeof(struct kernel_siginfo) */
#define CW_TRACE_COMM 16
#define CW_TRACE_RING (8 << 20) /* bytes, unless the reader wants another size */
#define CW_STOPPED 4096        /* processes that wait for the reader at a time */
#define CW_UNTOLD 16384        /* ended threads whose end had no room in the ring */

enum cw_trace_mode {
	CW_TRACE_LIVE = 1,     /* every event goes to the map `ring` */
	CW_TRACE_RECORD = 2,   /* each thread keeps its last calls */
};

enum cw_trace_rule_flag {
	CW_RULE_WAIT = 1,      /* processes are stopped while the ring is full to `high` */
	CW_RULE_TELL_FAILED = 2, /* `record`: what is kept goes to the ring at a death by a signal,
				  * or with a status other than 0 */
	CW_RULE_FOLLOW = 4,    /* children are traced as well */
};

/* What is traced of a thread: a value of the map `rules`, written by the reader. Rule 0 has no mode. */
struct cw_trace_rule {
	__u64 room;            /* bytes in the ring from which on calls are dropped */
	__u64 high;            /* bytes in the ring from which on processes wait */
	__u64 wanted[2][CW_NUMBER_WORDS]; /* a bit for each number: of 64-bit code, of 32-bit code */
	__u32 mode;            /* enum cw_trace_mode */
	__u32 flags;           /* enum cw_trace_rule_flag */
	__u32 strings;         /* bytes of each text; 0: none is copied */
	__u32 calls;           /* `record`: how many are kept, 1 to CW_KEPT_CALLS */
	__u32 reader;          /* tgid of the reader */
	__u32 reserved;
};

enum cw_text_length {
	/* 0 to 5: in that argument */
	CW_LENGTH_RESULT = 6,
	CW_LENGTH_STRING = 7,  /* up to its zero */
	CW_LENGTH_FIXED = 8,
};

enum cw_text_when {
	CW_TEXT_NONE = 0,
	CW_TEXT_IN = 1,        /* copied at the entry */
	CW_TEXT_OUT = 2,       /* copied at the exit, unless the call failed */
};

/* Where a call has its texts: a value of the map `shapes`; 32-bit code's follow the others. */
struct cw_call_shape {
	struct {
		__u8 when;     /* enum cw_text_when */
		__u8 argument;
		__u8 length;   /* enum cw_text_length */
		__u8 bytes;    /* of CW_LENGTH_FIXED */
	} texts[CW_CALL_TEXTS];
};

enum cw_text_flag {
	CW_TEXT_THERE = 1,
	CW_TEXT_CUT = 2,       /* it is longer */
	CW_TEXT_FAULT = 4,     /* it could not be read */
	CW_TEXT_LATE = 8,      /* it was not in memory at the entry, so it was copied at the exit */
};

struct cw_text {
	__u8 argument;
	__u8 flags;            /* enum cw_text_flag */
	__u16 length;          /* bytes, without a string's zero */
};

enum cw_call_flag {
	CW_CALL_COMPAT = 1,    /* of 32-bit code (int 0x80, SYSENTER) */
	CW_CALL_NO_ENTRY = 2,  /* its entry was not seen: it was in the call already, or seccomp(2)
				* refused it; arguments are the registers of its exit */
	CW_CALL_NO_RETURN = 4, /* the thread ended in it */
	CW_CALL_OPEN = 8,      /* it has not returned yet (only in what is kept) */
};

struct cw_call {
	__u64 enter_ns;        /* 0: unknown */
	__u64 args[CW_CALL_ARGS];
	__s64 result;
	__u32 number;
	__u16 flags;           /* enum cw_call_flag */
	__u16 cpu;             /* of the exit */
	struct cw_text texts[CW_CALL_TEXTS];
	__u32 reserved;
};

enum cw_trace_type {
	CW_TRACED_CALL = 1,
	CW_TRACED_SENT = 2,
	CW_TRACED_SIGNAL = 3,
	CW_TRACED_FORK = 4,
	CW_TRACED_EXEC = 5,
	CW_TRACED_EXIT = 6,
	CW_TRACED_KEPT = 7,
	CW_TRACED_WAIT = 8,
	CW_TRACED_TEXTS = 9,
};

/* The head of each record of the ring. */
struct cw_trace_event {
	__u32 type;            /* enum cw_trace_type */
	__u32 size;            /* bytes, with this head */
	__u64 time_ns;
	__u32 tid;             /* whose event it is */
	__u32 tgid;
	__u32 lost;            /* events of this thread that had no room since its last one here */
	__u32 rule;
};

/* CW_TRACED_CALL; the texts follow, one behind the other. */
struct cw_trace_call {
	struct cw_trace_event event;
	struct cw_call call;
};

/* CW_TRACED_SENT: a signal for the thread's process, or for the thread, was generated. */
struct cw_trace_sent {
	struct cw_trace_event event;
	__u32 signal;
	__u32 result;          /* <trace/events/signal.h>: 0 delivered, 2 pending already, ... */
	__u32 sender_tgid;     /* the current task, whoever the siginfo names */
	__u32 sender_tid;
	__u32 sender_uid;
	__u32 by_kernel;       /* it is no task's doing: the sender is who ran when it came */
	__u32 has_info;
	__u32 reserved;
	char sender_comm[CW_TRACE_COMM];
	__u8 info[CW_TRACE_SIGINFO];
};

/* CW_TRACED_SIGNAL: the thread takes a signal. */
struct cw_trace_signal {
	struct cw_trace_event event;
	__u64 handler;         /* 0: SIG_DFL, 1: SIG_IGN */
	__u32 signal;
	__u32 has_info;
	__u8 info[CW_TRACE_SIGINFO];
};

/* CW_TRACED_FORK: the thread made another one, of its own process or of a new one. */
struct cw_trace_fork {
	struct cw_trace_event event;
	__u64 clone_flags;
	__u32 child_tid;
	__u32 child_tgid;
	__u32 untraced;        /* there was no memory to follow it */
	__u32 reserved;
};

/* CW_TRACED_EXEC: the process is another program now. If strings are wanted, the path of its file
 * follows, then the arguments, each with its zero. */
struct cw_trace_exec {
	struct cw_trace_event event;
	__u32 old_tid;         /* the thread's before; it has the process's id now */
	__u32 path;            /* bytes that follow, with a zero */
	__u32 arguments;       /* bytes that follow these */
	__u32 all_arguments;   /* bytes that there are */
};

/* CW_TRACED_EXIT: a thread ends. */
struct cw_trace_exit {
	struct cw_trace_event event;
	__u64 made;            /* calls of this thread */
	__u64 lost_calls;      /* of these, those that had no room in the ring */
	__u32 status;          /* as of wait(2) */
	__u32 last;            /* of its process */
};

/* CW_TRACED_WAIT: the process is stopped until the reader has read on. */
struct cw_trace_wait {
	struct cw_trace_event event;
};

/* A call that a thread has kept. */
struct cw_kept_call {
	struct cw_call call;
	__u64 exit_ns;         /* 0: it has not returned */
};

/* All that a thread has kept: CW_TRACED_KEPT. The iterator `kept_calls` tells it as well, then the
 * struct cw_all_texts if there is one, then a struct cw_present. */
struct cw_kept {
	struct cw_trace_event event;
	__u64 made;            /* calls so far; the last one is at (made - 1) % calls */
	__u32 calls;           /* how many are kept at most */
	__u32 status;          /* of a thread that ended */
	__u32 last;            /* of its process */
	__u32 has_texts;       /* a struct cw_all_texts belongs to it */
	char comm[CW_TRACE_COMM];
	__u64 start_ns;        /* of the process */
	__u64 lost_calls;      /* calls that there was no memory to keep; none of them is in `made` */
	struct cw_kept_call kept[CW_KEPT_CALLS];
};

struct cw_kept_texts {
	__u8 bytes[CW_CALL_TEXTS][CW_KEPT_TEXT];
};

/* Their texts: CW_TRACED_TEXTS, before the other record. */
struct cw_all_texts {
	struct cw_trace_event event;
	struct cw_kept_texts of[CW_KEPT_CALLS];
};

/* How a thread that is to be traced is marked: the value of the map `arming`. */
struct cw_arming {
	__u32 rule;
	__u32 from_exec;       /* only from its next execve(2) on */
};

enum cw_armed {
	CW_ARMED_NOW = 1,
	CW_ARMED_BEFORE = 2,
	CW_ARMED_NOT = 3,      /* there was no memory for it */
	CW_ARMED_OTHER = 4,    /* it ends, or is a thread of the kernel */
};

/* One thread of the iterators `arm` and `disarm`. */
struct cw_armed_thread {
	__u32 tid;
	__u32 tgid;
	__u32 armed;           /* enum cw_armed */
	__u32 reserved;
};

/* One traced thread of the iterator `present`. */
struct cw_present {
	struct cw_trace_event event; /* type 0 */
	__u64 made;
	__u64 lost_calls;
	__u32 in_call;         /* `call` has not returned */
	__u32 reserved;
	struct cw_call call;
};

/* The value of `untold`, by tid: a thread whose end, or what it has kept, is not in the ring. */
struct cw_untold {
	__u64 made;
	__u64 lost_calls;
	__u64 start_ns;        /* of the process */
	__u32 tgid;
	__u32 lost;            /* events that no later one tells of */
	__u32 rule;
	__u32 last;            /* of its process */
};

enum cw_trace_counter {
	CW_COUNT_UNTRACED,     /* children that there was no memory to follow */
	CW_COUNT_UNTOLD,       /* ends of threads that are in no map either */
	CW_TRACE_COUNTERS,
};

#endif
