/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract between the native part of the hand-off and Python: contract.py says the same, and
 * tests/unit/test_native_contract.py compares both. Fixed-width fields in their natural alignment,
 * no implicit padding. It is not an interface to anything outside of this project.
 */
#ifndef COREWARD_HANDOFF_H
#define COREWARD_HANDOFF_H

#include <stdint.h>

#define COREWARD_API __attribute__((visibility("default")))

#define PINS 32              /* pages that are ready for a pin; Python makes new ones */
#define HANDS 256            /* processes that were released and are not known to Python yet */
#define TAKERS 64            /* threads at most that take processes from the kernel */
#define WHY 128              /* bytes of a reason, with its zero */
#define LINE 256             /* bytes of a pipe helper's line, with a zero behind */
#define DIGITS 18            /* of a number in it, at most */
#define PIN_MS 50            /* a pin that does not hold within so long never will */
#define MAX_CMDLINE (16 << 10) /* bytes of a process's arguments that are kept */
#define NO_LIMIT (1LL << 60) /* bytes; cgroup v1 says "none" with a number near 2^63 */
#define DEPTH 16             /* memory cgroups with a limit above one process */
#define LIMITS (DEPTH + 2)    /* of one process: these, and the two shares of its owner */
#define LEVELS 256           /* and of all that are pinned */
#define HANDFUL 8            /* deaths of one owner at a time that are no storm, whatever is slow */
#define OWNER_DEVICE 0       /* of a level that is an owner, with a number of pins: no file system is 0 */
#define HELPER_PATH 256      /* bytes, with the zero */
#define BIDDERS 64           /* rows of what dumpers want to see */
#define BIDDER_UIDS 8
#define BIDDER_COMM 64       /* bytes of a pattern, with its zero */
#define BIDDER_PATH 256      /* the same */
#define OWNER_BYTES UINT32_MAX /* the same with their bytes: nor is one this */

enum text { STAT, STATUS, CMDLINE, AUXV, CGROUP, FILTER, DESCRIPTORS, MAPS, TEXTS };
enum file { DIR_FD, MEM, PAGEMAP, ROOT, EXE, MOUNTS, FDS };
enum pin_state { EMPTY, READY, TAKEN };
enum answer { CLOSED = -1, REFUSED, PROCESS, LATE, NOBODY };

/* A page that keeps its reader waiting; handoff/pin.py makes it. */
struct pin {
	_Atomic int32_t state;     /* enum pin_state; ours from READY to TAKEN */
	int32_t uffd;
	uint64_t page;             /* registered with uffd, and absent */
	uint64_t request;          /* a struct aiocb */
};

/* A process that was released. Its pid alone may be another's by now. */
struct hand {
	_Atomic int32_t pid;       /* 0: this place is free, which Python says; negative: not yet whole */
	int32_t unused;
	uint64_t start_ticks;      /* field 22 of /proc/PID/stat: clock ticks since boot */
};

/* A memory cgroup with a limit, named by stat(2) of its directory. */
struct level {
	uint64_t device;
	uint64_t inode;
	int64_t bytes;             /* in an account: of pins below it; of a process: the room in it */
};

/*
 * Processes that a dumper may bid for. All must hold, and more than these may be asked for: Python
 * looks at the rest. In patterns only `*` is special; an empty one holds for everything.
 */
struct bidder {
	uint64_t signals;          /* bit N - 1: signal N; one that is not known holds */
	int32_t uid_count;         /* 0: any */
	uint32_t uids[BIDDER_UIDS];
	char comm[BIDDER_COMM];    /* of `Name` in /proc/PID/status */
	char exe[BIDDER_PATH];     /* where /proc/PID/exe points */
	char cgroup[BIDDER_PATH];  /* of all of /proc/PID/cgroup */
	int32_t unused;
};

/* Open pins. */
struct account {
	int64_t pins;
	int64_t bytes;
	int64_t count;             /* of levels; more than LEVELS: not all of them are here */
	struct level levels[LEVELS];
};

/* Shared with Python, which writes all of it but what is marked. */
struct orders {
	int32_t threads_program;   /* descriptors of the iterators; -1: there is no BPF */
	int32_t mappings_program;
	int32_t stream;            /* let the kernel write its core, for the sake of its notes */
	_Atomic int32_t instant;   /* policy lets every process go at once */
	_Atomic int32_t max_pins;
	_Atomic int32_t busy;      /* ours: so many processes are between hand-off and end */
	_Atomic int64_t max_pinned;/* bytes */
	struct account open;       /* Python's, by coreward_count() */
	struct account fresh;      /* ours: not in Python's yet */
	struct pin pins[PINS];
	struct hand in_hand[HANDS];/* ours */
	int32_t counted_map;       /* BPF's, of deaths that it has only counted; -1: there is none */
	int32_t armed_map;         /* BPF's, of processes whose memory we hold while they live; -1 */
	uint64_t heard;            /* address of a number that pipe helpers see: ours; 0: none; see pipe.py */
	uint64_t helper_device;    /* of the helper's program, as stat(2) tells them */
	uint64_t helper_inode;
	char helper_path[HELPER_PATH]; /* where the kernel finds it; empty: longer than that */
	_Atomic int64_t patience_ns; /* a process waits no longer, unless Python wants it to; 0: it may */
	_Atomic int64_t capture_ns; /* until the next core is written, if all writers are at work */
	_Atomic int32_t left_behind; /* ours: threads that a process keeps waiting */
	_Atomic int32_t untold;    /* ours: deaths that there was no memory for */
	_Atomic int32_t bidders;   /* so many of `bidder`, by coreward_bidders() */
	int32_t unused_too;
	struct bidder bidder[BIDDERS];
};

struct bytes {
	uint64_t at;
	uint64_t size;
};

/* One process, or why there is none. */
struct taken {
	int32_t hold;              /* the descriptor that holds the process; -1: it was released */
	int32_t pidfd;
	int32_t pid;
	int32_t tid;               /* of a thread that has its memory: pid, if that has not ended */
	int32_t signal;            /* -1: the kernel did not say */
	int32_t gathered;          /* what follows `line` is there */
	uint64_t start_ticks;
	int64_t accepted_ns;       /* CLOCK_MONOTONIC */
	int64_t released_ns;
	char why[WHY];             /* why it is no process for us; or was not gathered */
	char line[LINE];           /* the pipe helper's, with a zero behind */
	int32_t fds[FDS];          /* -1: cannot be had */
	int32_t pin;               /* index of the pin that was used, -1: none */
	int32_t begun;             /* its read was begun: it may hold */
	int32_t pin_fd;
	int32_t watch;             /* its place in the watchdog's table, -1: none */
	int32_t limits;            /* of memory cgroups, and its owner's: so many of `levels` */
	int32_t others;            /* processes that share its memory, and go on; -1: its parent, by
				    * vfork(2), which waits; -2: its parent, which may wait or not */
	int32_t spared;            /* let go without its memory: so many of its owner wait for cores */
	int32_t unopened;          /* shared mappings whose file is not in `shared` */
	struct level levels[LIMITS];
	uint64_t address;          /* of memory that can be read, for a pin; 0: none */
	int64_t private_size;      /* bytes that a successor must allocate again */
	uint64_t core_limit;       /* RLIMIT_CORE, bytes; RLIM_INFINITY: none */
	uint64_t entries;          /* of robust lists, so far */
	int64_t robust_until_ns;   /* for the rest of them */
	uint64_t owner;            /* whose share it uses: a uid, or a cgroup of root's; see owner.c */
	struct bytes texts[TEXTS]; /* files of /proc/PID; maps only without BPF */
	struct bytes threads;      /* struct cw_thread of coreward.h */
	struct bytes mappings;     /* struct cw_mapping */
	struct bytes words;        /* struct word */
	struct bytes shared;       /* struct shared */
	struct bytes area;         /* where all these are */
};

/* A word of memory that the exit of a thread changes, as it was. */
struct word {
	uint64_t address;
	uint32_t value;
	uint32_t unused;
};

/* The file behind a mapping that has no name: shared memory, or code. */
struct shared {
	uint64_t start;            /* of the mapping */
	int32_t fd;
	int32_t code;              /* 1: it is private, and can be executed */
};

/*
 * Have threads take what is handed over at a listener, which blocks, and must stay open until it was
 * shut down and coreward_take() has said CLOSED. Returns what they are known by; NULL, or errno, if
 * there can be none.
 */
COREWARD_API void *coreward_serve(int listener, int pipe, struct orders *o);

/*
 * The next hand-off that they have taken, and gathered; an enum answer. -1 ms: wait for ever.
 * PROCESS: if `hold` is not -1 it is held, and coreward_unwatch() is to be called before that is
 * closed. If `gathered` is 0 something could not be had, `why` says what, and it was released. If
 * it is `spared` there is no pin, nor anything of threads and memory. In any case coreward_drop().
 * REFUSED: not a process for us, `why` says why. LATE: the pipe's helper had given up, and leaves a
 * note. CLOSED: the listener is, and all was taken. NOBODY: in that time.
 */
COREWARD_API int coreward_take(void *pool, struct taken *t, int timeout_ms);

/*
 * They take no more, although the listener stays: who connects from now on waits in it for whoever
 * takes from it next. What they have taken is told as usual, then coreward_take() says CLOSED.
 */
COREWARD_API void coreward_stop(void *pool);

/* They are not needed any more; no other call is under way, nor follows. */
COREWARD_API void coreward_leave(void *pool);

/*
 * A held process is about to be released, or waits because Python wants it to: its time does not
 * count any more. 0: that was over, and it was let go.
 */
COREWARD_API int coreward_unwatch(int watch);

/* The memory that a gathered process takes here; its descriptors are Python's. */
COREWARD_API void coreward_drop(struct taken *t);

/* A pin of `size` bytes, of a process that was released, is in Python's account now. */
COREWARD_API void coreward_entered(struct orders *o, int64_t size, const struct level *levels,
				   int32_t count);

/* What is in Python's account now; and what is not yet. */
COREWARD_API void coreward_count(struct orders *o, const struct account *open);
COREWARD_API void coreward_fresh(const struct orders *o, struct account *fresh);

/* From now on processes that one of these may bid for stay held; at most BIDDERS. */
COREWARD_API void coreward_bidders(struct orders *o, const struct bidder *rows, int32_t count);

/* Whether a process was let go without being told of, for so many of its owner died before it. */
COREWARD_API int coreward_was_spared(int pid, uint64_t start_ticks);

/* So many more, or fewer, processes are held by Python. */
COREWARD_API void coreward_busy(struct orders *o, int more);

/* Wait for `wake`, or an event of BPF in `ring`; a descriptor of -1 does not count. */
COREWARD_API void coreward_wait(struct orders *o, int wake, int ring, int timeout_ms);

/* The sizes of what is shared. */
COREWARD_API uint64_t coreward_sizes(void);

#endif
