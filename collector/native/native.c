/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands between a crash and the restart of its service, without the interpreter: take the
 * process from the kernel, gather what its end would destroy, pin its memory, let it go. Python
 * does the same where this may not decide (native.py says when), and all that comes afterwards.
 *
 * Why not Python: an agent that has been idle runs a thousand calls whose code and data are in no
 * cache any more, 6 ms; this takes 0.7.
 *
 * Everything read here comes from a hostile process. Nothing of it is decoded but numbers of
 * /proc, of the task iterators and of a robust list; each is bounded.
 */
#define _GNU_SOURCE
#include <aio.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "coreward.h"

#define PINS 8               /* that are ready; Python makes new ones */
#define HANDS 64             /* processes that were let go and are not known to Python yet */
#define AREA (1UL << 30)     /* address space for one process; memory only where it is written */
#define TEXT (1UL << 20)     /* of it for files of /proc */
#define CHUNK (1UL << 18)    /* the kernel fills at most 32 KiB of it per read */
#define WORDS (1UL << 27)    /* of it for exit words: 8 million threads */
#define MAX_CMDLINE (16 << 10)
#define MAX_ENTRIES (16 << 10) /* of the robust lists of one process: 20 ms */
#define MAX_SHARED 1024      /* descriptors for one process */
#define PIN_MS 50
#define RSP 19               /* in struct user_regs_struct */
#define MANY 500             /* threads: their mappings are worth a thread of ours */
#define EXIT_MS 50           /* for the end of a process that was let go */
#define MOMENT_MS 5          /* a hand-off follows its signal within so long, if there is one */
#define EVENTS_MS 100        /* events are read this late at most */
#define MESSAGE_MS 20        /* the helper sends its line at once after it connects */
#define KERNEL_S 1           /* patience with the kernel's part, which takes microseconds */
#define NO_LIMIT (1LL << 60) /* bytes; cgroup v1 says "none" with a number near 2^63 */

enum { STAT, STATUS, CMDLINE, AUXV, CGROUP, FILTER, TEXTS };
enum { DIR_FD, MEM, PAGEMAP, ROOT, EXE, MOUNTS, FDS };
enum { EMPTY, READY, TAKEN };

struct pin {
	_Atomic int32_t state;
	int32_t uffd;
	uint64_t page;             /* registered with uffd, and absent */
	uint64_t request;          /* a struct aiocb */
};

/* Shared with Python, which writes all of it but what is marked. */
struct orders {
	int32_t threads_program;   /* descriptors of the iterators */
	int32_t mappings_program;
	_Atomic int32_t instant;   /* policy lets every process go at once */
	_Atomic int32_t max_pins;
	_Atomic int64_t max_pinned;/* bytes */
	_Atomic int64_t open_pins; /* in Python's account */
	_Atomic int64_t open_bytes;
	int64_t fresh_pins;        /* ours: not in Python's account yet */
	int64_t fresh_bytes;
	struct pin pins[PINS];
	_Atomic int32_t in_hand[HANDS]; /* ours: pids; Python sets them to 0 */
	_Atomic int32_t busy;      /* ours: so many processes are between hand-off and end */
	int32_t heard_fd;          /* where pipe helpers see that we hear others; see pipe.py */
	_Atomic uint64_t heard;    /* ours from then on */
	uint64_t helper_device, helper_inode; /* of their program */
};

struct bytes {
	uint64_t at, size;
};

struct taken {
	int32_t hold;              /* the descriptor that holds the process; -1: it was let go */
	int32_t pidfd;
	int32_t pid;
	int32_t signal;            /* -1: the kernel did not say */
	int32_t gathered;          /* what follows `why` is there, and to be given to drop() */
	int64_t accepted_ns;       /* CLOCK_MONOTONIC */
	int64_t released_ns;
	char why[128];             /* why it is no process for us; or was not gathered */
	char line[256];            /* the pipe helper's, with a zero behind */
	int32_t fds[FDS];          /* -1: can not be had */
	int32_t pin;               /* index of the pin that was used, -1: none */
	int32_t begun;             /* its read was begun: it may hold */
	int32_t pin_fd;
	int64_t private;           /* bytes that a successor needs anew */
	uint64_t entries;          /* of robust lists, so far */
	uint64_t core_limit;       /* RLIMIT_CORE, bytes; RLIM_INFINITY: none */
	struct bytes texts[TEXTS], threads, mappings, words, shared;
	uint64_t area;
};

/* A word of memory that the exit of a thread changes, as it was. */
struct word {
	uint64_t address;
	uint32_t value, unused;
};

struct shared {
	uint64_t start;
	int32_t fd, unused;
};

/* One at a time: each iterator has one scratch page per CPU; and the account is one. */
static pthread_mutex_t listing_threads = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t listing_mappings = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t account = PTHREAD_MUTEX_INITIALIZER;

static int64_t now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

static void forget(int fd)
{
	if (fd >= 0)
		close(fd);
}

__attribute__((format(printf, 2, 3)))
static bool because(struct taken *t, const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vsnprintf(t->why, sizeof(t->why), format, values);
	va_end(values);
	return false;
}

/* ---- who it is: SO_PEERPIDFD (unix(7), Linux >= 6.5), PIDFD_GET_INFO (<linux/pidfd.h>, of core
 * dumps since 6.16); before these the peer's pid, and /proc/PID/status (proc(5), since 4.15) */

struct pidfd_info {
	uint64_t mask, cgroupid;
	uint32_t pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
	int32_t exit_code;
	uint32_t coredump_mask, coredump_signal;
};

#define GET_INFO _IOWR(0xFF, 11, struct pidfd_info)
#define HAS_PID 1
#define HAS_CREDS 2
#define HAS_COREDUMP 16
#define HAS_SIGNAL 64
#define DUMPED 1

static int open_pidfd(int pid)
{
	return (int)syscall(434 /* pidfd_open(2) */, pid, 0);
}

static bool peer(int conn, int *pidfd, struct taken *t)
{
	socklen_t size = sizeof(*pidfd);
	struct ucred who;

	if (!getsockopt(conn, SOL_SOCKET, 77 /* SO_PEERPIDFD */, pidfd, &size))
		return true;
	*pidfd = -1;
	size = sizeof(who);
	if (errno == ENOPROTOOPT && !getsockopt(conn, SOL_SOCKET, SO_PEERCRED, &who, &size))
		*pidfd = open_pidfd(who.pid);
	return *pidfd >= 0 ||
	       because(t, "no process descriptor of a socket's peer: %s", strerror(errno));
}

/*
 * Whether the process t->pid is dumping core, of a kernel that tells it only there: of a task that
 * has its memory, so of the thread that died, `tid`; the main thread may have ended before.
 */
static bool status_tells_dump(struct taken *t, int tid)
{
	static const char wanted[] = "\nCoreDumping:\t1\n";
	char path[64], text[4096];
	size_t kept = 0; /* the end of what was looked at, where the line may have begun */
	bool found = false;
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", t->pid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	/* as long as it may be: a process can be in 65,536 groups, whose line comes before */
	while (!found && fd >= 0 && (got = read(fd, text + kept, sizeof(text) - kept)) > 0) {
		size_t have = kept + (size_t)got;

		found = memmem(text, have, wanted, sizeof(wanted) - 1);
		kept = have < sizeof(wanted) ? have : sizeof(wanted);
		memmove(text, text + have - kept, kept);
	}
	forget(fd);
	return found || because(t, "pid %d is not dumping core", t->pid);
}

/* tid: of the thread that died, where the helper told it; else that of the main thread. */
static bool identify(struct taken *t, int tid)
{
	struct pidfd_info info = { .mask = HAS_PID | HAS_CREDS | HAS_COREDUMP | HAS_SIGNAL };

	if (ioctl(t->pidfd, GET_INFO, &info)) {
		if (errno != ESRCH && t->pid > 0)
			return status_tells_dump(t, tid);
		return because(t, "nothing is known of a process: %s", strerror(errno));
	}
	if (!(info.mask & HAS_PID) || !info.tgid)
		return because(t, "the process is not visible in this pid namespace");
	t->pid = (int32_t)info.tgid;
	if (!(info.mask & HAS_COREDUMP))
		return status_tells_dump(t, tid ? tid : t->pid);
	if (!(info.coredump_mask & DUMPED))
		return because(t, "pid %d (uid %u) is not dumping core", t->pid, info.ruid);
	if (info.mask & HAS_SIGNAL)
		t->signal = (int32_t)info.coredump_signal;
	return true;
}

/* ---- the coredump socket's protocol: <linux/coredump.h> */

struct request {
	uint32_t size, size_ack;
	uint64_t mask;
};

#define USERSPACE 2
#define WAIT 8

static bool receive(int conn, void *to, size_t size)
{
	return recv(conn, to, size, MSG_WAITALL) == (ssize_t)size;
}

static bool negotiate(int conn, struct taken *t)
{
	struct request asked, answer = { sizeof(answer), 0, USERSPACE | WAIT };
	char later[4096];
	uint32_t mark;

	if (!receive(conn, &asked, sizeof(asked)))
		return because(t, "pid %d: the kernel's hand-off ended early", t->pid);
	if (asked.size < sizeof(asked) || asked.size > sizeof(later) ||
	    asked.size_ack < sizeof(answer))
		return because(t, "pid %d: not a coredump request: sizes %u, %u", t->pid,
			       asked.size, asked.size_ack);
	if (asked.size > sizeof(asked) && !receive(conn, later, asked.size - sizeof(asked)))
		return because(t, "pid %d: the kernel's hand-off ended early", t->pid);
	if (answer.mask & ~asked.mask)
		return because(t, "pid %d: the kernel offers %#llx, not %#llx", t->pid,
			       (unsigned long long)asked.mask, (unsigned long long)answer.mask);
	if (send(conn, &answer, sizeof(answer), MSG_NOSIGNAL) != sizeof(answer) ||
	    !receive(conn, &mark, sizeof(mark)))
		return because(t, "pid %d: the kernel broke off its hand-off", t->pid);
	if (mark)
		return because(t, "pid %d: the kernel refuses our answer: %u", t->pid, mark);
	return true;
}

/* ---- /proc */

static char *area_of(struct taken *t)
{
	return (char *)(uintptr_t)t->area;
}

/* The whole of an open file, behind what the area holds already. The descriptor is closed. */
static bool read_text(struct taken *t, int fd, size_t limit, uint64_t *used, struct bytes *to)
{
	size_t size = 0;
	ssize_t got = -1;

	*to = (struct bytes){ t->area + *used, 0 };
	if (fd < 0)
		return false;
	while (size < limit && *used + size < TEXT) {
		size_t room = TEXT - *used - size;

		got = read(fd, area_of(t) + *used + size, room < limit - size ? room : limit - size);
		if (got <= 0)
			break;
		size += (size_t)got;
	}
	close(fd);
	to->size = size;
	*used += size;
	return got >= 0 && *used < TEXT;
}

/* The begin of a text, with a zero behind. */
static char *text_of(struct taken *t, int which, char *to, size_t size)
{
	size_t have = t->texts[which].size < size - 1 ? t->texts[which].size : size - 1;

	memcpy(to, (void *)(uintptr_t)t->texts[which].at, have);
	to[have] = 0;
	return to;
}

/*
 * Whether memory of the process is there, or in swap. What is not is never touched: it may be a
 * page that keeps whoever touches it waiting, for ever (userfaultfd, FUSE). A held process makes no
 * pages go or come. From /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
 */
static bool resident(struct taken *t, uint64_t address, size_t size)
{
	for (uint64_t page = address / CW_PAGE; page <= (address + size - 1) / CW_PAGE; page++) {
		uint64_t entry;

		if (pread(t->fds[PAGEMAP], &entry, sizeof(entry), (off_t)(page * sizeof(entry))) !=
			    sizeof(entry) ||
		    !(entry >> 62))
			return false;
	}
	return true;
}

/* The same of its arguments: fields 48 and 49 of /proc/PID/stat (proc(5)). */
static bool has_arguments(struct taken *t)
{
	char text[2048], *at = strrchr(text_of(t, STAT, text, sizeof(text)), ')');
	uint64_t start, end;

	for (int field = 2; at && field < 48; field++)
		at = strchr(at + 1, ' ');
	if (!at)
		return false;
	start = strtoull(at, &at, 10);
	end = strtoull(at, NULL, 10);
	if (end > start + MAX_CMDLINE)
		end = start + MAX_CMDLINE;
	return start < end && resident(t, start, end - start);
}

static bool open_process(struct taken *t)
{
	static const char *const names[TEXTS] = { "stat",  "status", "cmdline",
						  "auxv",  "cgroup", "coredump_filter" };
	static const struct {
		const char *name;
		int flags;
		bool needed;
	} files[FDS] = {
		[MEM] = { "mem", O_RDONLY, true },       [PAGEMAP] = { "pagemap", O_RDONLY, true },
		[ROOT] = { "root", O_PATH, true },       [EXE] = { "exe", O_PATH, false },
		[MOUNTS] = { "ns/mnt", O_RDONLY, false },
	};
	struct rlimit limit;
	uint64_t used = 0;
	char path[32];
	int dir;

	/* one look-up of the pid: all else goes through this directory */
	snprintf(path, sizeof(path), "/proc/%d", t->pid);
	dir = t->fds[DIR_FD] = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return because(t, "process %d: %s", t->pid, strerror(errno));
	for (int i = MEM; i < FDS; i++) {
		t->fds[i] = openat(dir, files[i].name, files[i].flags | O_CLOEXEC);
		if (t->fds[i] < 0 && files[i].needed)
			return because(t, "process %d: %s: %s", t->pid, files[i].name, strerror(errno));
	}
	for (int i = 0; i < TEXTS; i++)
		if ((i != CMDLINE || has_arguments(t)) &&
		    !read_text(t, openat(dir, names[i], O_RDONLY | O_CLOEXEC),
			       i == CMDLINE ? MAX_CMDLINE : TEXT, &used, &t->texts[i]))
			return because(t, "process %d: %s can not be read", t->pid, names[i]);
	if (prlimit(t->pid, RLIMIT_CORE, NULL, &limit))
		return because(t, "process %d: no limits: %s", t->pid, strerror(errno));
	t->core_limit = limit.rlim_cur;
	return true;
}

/* ---- threads and mappings: iter/task and iter/task_vma (BPF_LINK_CREATE, BPF_ITER_CREATE) */

/* `single`: of one thread, else of a thread group. Returns a descriptor. */
static int open_iterator(int program, int pid, bool single)
{
	union bpf_iter_link_info info = { 0 };
	union bpf_attr attr = { 0 };
	int link, iterator;

	if (single)
		info.task.tid = (uint32_t)pid;
	else
		info.task.pid = (uint32_t)pid;
	attr.link_create.prog_fd = (uint32_t)program;
	attr.link_create.attach_type = BPF_TRACE_ITER;
	attr.link_create.iter_info = (uintptr_t)&info;
	attr.link_create.iter_info_len = sizeof(info);
	link = (int)syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof(attr));
	if (link < 0)
		return -1;
	memset(&attr, 0, sizeof(attr));
	attr.iter_create.link_fd = (uint32_t)link;
	iterator = (int)syscall(SYS_bpf, BPF_ITER_CREATE, &attr, sizeof(attr));
	close(link);
	return iterator;
}

/* All that an iterator says, at `to`, of which `room` bytes are free; nothing if that is not all. */
static struct bytes iterate(int program, int pid, bool single, char *to, size_t room)
{
	int iterator = open_iterator(program, pid, single);
	uint64_t start, last = 0;
	size_t size = 0;
	ssize_t got = -1;

	while (iterator >= 0 && room - size >= CHUNK) {
		got = read(iterator, to + size, CHUNK);
		if (got <= 0)
			break;
		if (single && (size_t)got >= sizeof(struct cw_mapping)) {
			/* the kernel tells the last buffer again and again instead of ending */
			memcpy(&start, to + size + offsetof(struct cw_mapping, start), sizeof(start));
			if (size && start <= last) {
				got = 0;
				break;
			}
			last = start;
		}
		size += (size_t)got;
	}
	forget(iterator);
	return (struct bytes){ (uintptr_t)to, got ? 0 : size };
}

/* ---- what exit changes in memory that stays: mm_release() of kernel/fork.c */

struct robust_head {
	uint64_t next;             /* Documentation/locking/robust-futexes.rst */
	int64_t offset;
	uint64_t pending;
};

/* Read pieces of another process; a size of 0 says that one can not be read. */
static void read_pieces(int pid, struct iovec *to, struct iovec *from, size_t count)
{
	while (count) {
		ssize_t got = process_vm_readv(pid, to, count, from, count, 0);

		for (; count && got >= (ssize_t)from->iov_len; to++, from++, count--)
			got -= (ssize_t)from->iov_len;
		if (count) { /* it stops at the first that can not be read: skip that one */
			to->iov_len = 0;
			to++, from++, count--;
		}
	}
}

static bool read_piece(struct taken *t, uint64_t address, void *to, size_t size)
{
	struct iovec local = { to, size }, remote = { (void *)(uintptr_t)address, size };

	if (!resident(t, address, size))
		return false;
	read_pieces(t->pid, &local, &remote, 1);
	return local.iov_len;
}

static void keep_word(struct taken *t, uint64_t address, uint32_t value)
{
	struct word *words = (struct word *)(uintptr_t)t->words.at;

	if (t->words.size + sizeof(*words) <= WORDS) {
		words[t->words.size / sizeof(*words)] = (struct word){ address, value, 0 };
		t->words.size += sizeof(*words);
	}
}

static void keep_robust(struct taken *t, uint64_t head, const struct robust_head *list)
{
	uint64_t entry = list->next, lock = list->pending;
	uint32_t value;

	/* ROBUST_LIST_LIMIT of <linux/futex.h>; all threads together can not keep us for long */
	for (int left = 2048; left && t->entries < MAX_ENTRIES; left--, t->entries++) {
		if (lock && read_piece(t, (lock & ~1UL) + (uint64_t)list->offset, &value, 4))
			keep_word(t, (lock & ~1UL) + (uint64_t)list->offset, value);
		if (entry == head || !entry)
			break;
		lock = entry;
		if (!read_piece(t, entry & ~1UL, &entry, 8))
			entry = 0;
	}
}

/* A C library keeps both in the thread's control block, the list this many bytes behind at most. */
#define APART 256
#define BATCH 512

static void keep_words_of(struct taken *t, const struct cw_thread **threads, size_t count)
{
	struct iovec local[BATCH], remote[BATCH];
	char blocks[BATCH][APART + sizeof(struct robust_head)];

	for (size_t i = 0; i < count; i++) {
		uint64_t tid = threads[i]->clear_child_tid, apart = threads[i]->robust_list - tid;
		size_t size = apart + sizeof(struct robust_head);

		if (apart < 4 || apart > APART || !resident(t, tid, size))
			size = 0;
		remote[i] = (struct iovec){ (void *)(uintptr_t)tid, size };
		local[i] = (struct iovec){ blocks[i], size };
	}
	read_pieces(t->pid, local, remote, count);
	for (size_t i = 0; i < count; i++) {
		uint64_t tid = threads[i]->clear_child_tid, head = threads[i]->robust_list;
		struct robust_head list;
		uint32_t value;

		if (local[i].iov_len)
			memcpy(&value, blocks[i], sizeof(value));
		if (local[i].iov_len || (tid && read_piece(t, tid, &value, sizeof(value))))
			keep_word(t, tid, value);
		if (local[i].iov_len)
			memcpy(&list, blocks[i] + (head - tid), sizeof(list));
		if ((local[i].iov_len || (head && read_piece(t, head, &list, sizeof(list)))) &&
		    (list.next != head || list.pending))
			keep_robust(t, head, &list);
	}
}

static void keep_words(struct taken *t)
{
	const struct cw_thread *batch[BATCH];
	uint64_t at = t->threads.at, end = at + t->threads.size;
	size_t count = 0;

	while (at + sizeof(struct cw_thread) <= end) {
		batch[count] = (const struct cw_thread *)(uintptr_t)at;
		if (batch[count]->size < sizeof(struct cw_thread))
			at = end; /* no record of ours: Python will say so */
		else
			at += batch[count++]->size;
		if (count == BATCH || at + sizeof(struct cw_thread) > end) {
			keep_words_of(t, batch, count);
			count = 0;
		}
	}
}

/* Files without a name behind shared mappings: they tell which pages exist at all. */
static void open_shared(struct taken *t)
{
	struct shared *found = (struct shared *)(uintptr_t)t->shared.at;
	uint64_t at = t->mappings.at, end = at + t->mappings.size;
	size_t count = 0;

	while (at + sizeof(struct cw_mapping) <= end && count < MAX_SHARED) {
		const struct cw_mapping *m = (const struct cw_mapping *)(uintptr_t)at;

		if (m->flags & CW_MAPPING_FILE && m->vm_flags & 8 /* VM_SHARED */ && !m->nlink) {
			char name[64];
			int fd;

			snprintf(name, sizeof(name), "map_files/%llx-%llx",
				 (unsigned long long)m->start, (unsigned long long)m->end);
			fd = openat(t->fds[DIR_FD], name, O_RDONLY | O_CLOEXEC);
			if (fd >= 0)
				found[count++] = (struct shared){ m->start, fd, 0 };
		}
		if (m->size < sizeof(*m))
			break;
		at += m->size;
	}
	t->shared.size = count * sizeof(*found);
}

/* ---- may it go at once? As collector/handoff/governor.py, which is asked if this says no */

/* The number in a field; -1: there is none. `text` ends with a zero. */
static int64_t field(const char *text, const char *name)
{
	size_t size = strlen(name);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, size) && line[size] == ':')
			return strtoll(line + size + 1, NULL, 10);
	}
	return -1;
}

static bool small_file(const char *path, char *to, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, to, size - 1);

	forget(fd);
	to[got > 0 ? got : 0] = 0;
	return got > 0;
}

static bool has_limit(const char *directory, const char *name)
{
	char path[4200], text[32];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	return small_file(path, text, sizeof(text)) && text[0] >= '0' && text[0] <= '9' &&
	       strtoll(text, NULL, 10) < NO_LIMIT;
}

/* Whether the memory cgroup `path` below `root`, and all above it, are there and have no limit. */
static bool unlimited_from(const char *root, const char *path, size_t size, bool v2)
{
	size_t base = strlen(root);
	char here[4096];
	struct stat about;

	if (base + size + 1 > sizeof(here) || memmem(path, size, "..", 2))
		return false;
	memcpy(here, root, base);
	memcpy(here + base, path, size);
	for (size += base; here[size - 1] == '/' && size > base; size--)
		;
	here[size] = 0;
	if (stat(here, &about) || !S_ISDIR(about.st_mode))
		return false;
	for (;;) {
		char *slash;

		if (v2 ? has_limit(here, "memory.max") || has_limit(here, "memory.high")
		       : has_limit(here, "memory.limit_in_bytes"))
			return false;
		slash = strrchr(here, '/');
		if (!slash || slash < here + base)
			return true;
		*slash = 0;
	}
}

/* `groups`: /proc/PID/cgroup (cgroups(7)), with a zero at its end. */
static bool unlimited(const char *groups)
{
	static const char top[] = "/sys/fs/cgroup", unified[] = "/sys/fs/cgroup/unified";

	for (const char *line = groups; *line;) {
		const char *end = strchrnul(line, '\n');
		const char *names = memchr(line, ':', (size_t)(end - line));
		const char *path = names ? memchr(names + 1, ':', (size_t)(end - names - 1)) : NULL;

		if (path) {
			struct stat about;
			size_t size = (size_t)(end - path - 1);
			char list[256];

			names++;
			if (snprintf(list, sizeof(list), ",%.*s,", (int)(path - names), names) >=
			    (int)sizeof(list))
				return false;
			if (path == names) {
				if (!unlimited_from(stat(unified, &about) ? top : unified, path + 1,
						    size, true))
					return false;
			} else if (strstr(list, ",memory,")) {
				if (!unlimited_from("/sys/fs/cgroup/memory", path + 1, size, false))
					return false;
			}
		}
		line = *end ? end + 1 : end;
	}
	return true;
}

/* Enter a pin of this process in the account, if there is room for a successor of its size. */
static bool admit(struct orders *o, struct taken *t)
{
	char text[8192];
	int64_t anonymous, available, shmem, swap;
	bool fits;

	text_of(t, STATUS, text, sizeof(text));
	anonymous = field(text, "RssAnon");
	shmem = field(text, "RssShmem");
	swap = field(text, "VmSwap");
	if (anonymous < 0 || t->texts[CGROUP].size >= sizeof(text) ||
	    !unlimited(text_of(t, CGROUP, text, sizeof(text))) ||
	    !small_file("/proc/meminfo", text, sizeof(text)) ||
	    (available = field(text, "MemAvailable")) < 0)
		return false;
	t->private = (anonymous + (shmem > 0 ? shmem : 0) + (swap > 0 ? swap : 0)) * 1024;
	pthread_mutex_lock(&account);
	anonymous = o->open_bytes + o->fresh_bytes + t->private;
	fits = o->open_pins + o->fresh_pins < o->max_pins && anonymous <= o->max_pinned &&
	       anonymous <= available * 1024;
	if (fits) {
		o->fresh_pins++;
		o->fresh_bytes += t->private;
	}
	pthread_mutex_unlock(&account);
	return fits;
}

/* A pin that admit() has entered is in Python's account now, or is not to be. */
void coreward_entered(struct orders *o, int64_t size)
{
	pthread_mutex_lock(&account);
	o->fresh_pins--;
	o->fresh_bytes -= size;
	pthread_mutex_unlock(&account);
}

/* ---- the pin: see pin.py, which makes them ready and lets them go */

/* An address that can be read: of its program headers, its vdso or a stack; 0: none. */
static uint64_t readable(struct taken *t)
{
	const struct cw_thread *first = (const struct cw_thread *)(uintptr_t)t->threads.at;
	uint64_t found[] = { 0, 0, first->regs[RSP] }, entry[2], probe;

	for (size_t at = 0; at + sizeof(entry) <= t->texts[AUXV].size; at += sizeof(entry)) {
		memcpy(entry, (char *)(uintptr_t)t->texts[AUXV].at + at, sizeof(entry));
		if (entry[0] == AT_PHDR || entry[0] == AT_SYSINFO_EHDR)
			found[entry[0] == AT_SYSINFO_EHDR] = entry[1];
	}
	for (size_t i = 0; i < 3; i++)
		if (found[i] && resident(t, found[i], sizeof(probe)) &&
		    pread(t->fds[MEM], &probe, sizeof(probe), (off_t)found[i]) == sizeof(probe))
			return found[i];
	return 0;
}

static bool pin_memory(struct orders *o, struct taken *t)
{
	uint64_t address = readable(t), event[4] = { 0 };
	struct aiocb *request;
	struct pollfd ready;

	for (int i = 0; address && i < PINS && t->pin < 0; i++) {
		int32_t is = READY;

		if (atomic_compare_exchange_strong(&o->pins[i].state, &is, TAKEN))
			t->pin = i;
	}
	if (t->pin < 0)
		return false;
	/* glibc queues requests on the same descriptor, so each pin keeps one of its own */
	t->pin_fd = fcntl(t->fds[MEM], F_DUPFD_CLOEXEC, 0);
	request = (struct aiocb *)(uintptr_t)o->pins[t->pin].request;
	memset(request, 0, sizeof(*request));
	request->aio_fildes = t->pin_fd;
	request->aio_buf = (void *)(uintptr_t)o->pins[t->pin].page;
	request->aio_nbytes = 8;
	request->aio_offset = (off_t)address;
	request->aio_sigevent.sigev_notify = SIGEV_NONE;
	if (t->pin_fd < 0 || aio_read(request))
		return false;
	t->begun = 1;
	ready = (struct pollfd){ o->pins[t->pin].uffd, POLLIN, 0 };
	return poll(&ready, 1, PIN_MS) == 1 &&
	       read(o->pins[t->pin].uffd, event, sizeof(event)) == sizeof(event) &&
	       (event[0] & 0xFF) == 0x12 /* UFFD_EVENT_PAGEFAULT */;
}

static bool enter_hand(struct orders *o, struct taken *t)
{
	for (int i = 0; i < HANDS; i++) {
		int32_t nobody = 0;

		if (atomic_compare_exchange_strong(&o->in_hand[i], &nobody, t->pid))
			return true;
	}
	return false;
}

/* ---- all of it */

struct job {
	struct orders *orders;
	struct taken *taken;
};

static void *list_mappings(void *of)
{
	struct taken *t = ((struct job *)of)->taken;
	uint64_t to = t->area + AREA / 2;

	pthread_mutex_lock(&listing_mappings);
	t->mappings = iterate(((struct job *)of)->orders->mappings_program, t->pid, true,
			      (char *)(uintptr_t)to, t->shared.at - to);
	pthread_mutex_unlock(&listing_mappings);
	open_shared(t);
	return NULL;
}

static int64_t thread_count(struct taken *t)
{
	char text[8192];

	return field(text_of(t, STATUS, text, sizeof(text)), "Threads");
}

static bool collect(struct orders *o, struct taken *t)
{
	char *area = mmap(NULL, AREA, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct job job = { o, t };
	bool many;
	pthread_t beside;

	if (area == MAP_FAILED)
		return because(t, "no address space: %s", strerror(errno));
	t->area = (uintptr_t)area;
	t->words = (struct bytes){ t->area + AREA - WORDS, 0 };
	t->shared = (struct bytes){ t->words.at - MAX_SHARED * sizeof(struct shared), 0 };
	/* in huge pages where many records are to come, but not for a small process */
	madvise(area + TEXT + CHUNK, AREA / 2 - TEXT - CHUNK, MADV_HUGEPAGE);
	madvise(area + AREA / 2 + CHUNK, t->shared.at - t->area - AREA / 2 - CHUNK, MADV_HUGEPAGE);
	if (!open_process(t))
		return false;
	many = thread_count(t) >= MANY && !pthread_create(&beside, NULL, list_mappings, &job);
	pthread_mutex_lock(&listing_threads);
	t->threads = iterate(o->threads_program, t->pid, false, area + TEXT, AREA / 2 - TEXT);
	pthread_mutex_unlock(&listing_threads);
	if (many)
		pthread_join(beside, NULL);
	else
		list_mappings(&job);
	if (!t->threads.size || !t->mappings.size)
		return because(t, "its %s can not be listed", t->threads.size ? "mappings" : "threads");
	keep_words(t);
	return true;
}

/* Close everything that collect() has opened. */
static void abandon(struct taken *t)
{
	const struct shared *found = (const struct shared *)(uintptr_t)t->shared.at;

	for (size_t i = 0; i < t->shared.size / sizeof(*found); i++)
		close(found[i].fd);
	for (int i = 0; i < FDS; i++)
		forget(t->fds[i]);
}

static void gather(struct orders *o, struct taken *t)
{
	for (int i = 0; i < FDS; i++)
		t->fds[i] = -1;
	t->pin = t->pin_fd = -1;
	t->gathered = collect(o, t);
	if (!t->gathered) {
		abandon(t);
		return;
	}
	if (!o->instant || !admit(o, t))
		return;
	if (!pin_memory(o, t) || !enter_hand(o, t)) {
		coreward_entered(o, t->private);
		return;
	}
	t->released_ns = now_ns();
	close(t->hold);
	t->hold = -1;
	/* its threads need the CPU that Python would be on now */
	poll(&(struct pollfd){ t->pidfd, POLLIN, 0 }, 1, EXIT_MS);
}

/*
 * Everything of a held process that goes with it, and its release if nothing speaks against it.
 * t: zero but for hold, pidfd, pid and signal. If something is missing `gathered` is 0, and `why`
 * says what; it is held still. To be given to coreward_drop() in any case.
 */
void coreward_gather(struct orders *o, struct taken *t)
{
	o->busy++;
	gather(o, t);
	o->busy--;
}

/* The memory that a gathered process takes here; its descriptors are Python's. */
void coreward_drop(struct taken *t)
{
	if (t->area)
		munmap((void *)(uintptr_t)t->area, AREA);
	t->area = 0;
}

enum { CLOSED = -1, REFUSED, PROCESS, LATE };

/* Wait for a connection; one of the above, or the descriptor is in `conn`. */
static int wait_for(int listener, struct taken *t, int *conn)
{
	static const struct timespec pause = { 0, 20 * 1000000 };

	*conn = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	memset(t, 0, sizeof(*t));
	t->accepted_ns = now_ns();
	t->hold = t->pidfd = t->signal = -1;
	if (*conn >= 0)
		return PROCESS;
	if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS &&
	    errno != EINTR && errno != ECONNABORTED)
		return CLOSED;
	because(t, "cannot accept a hand-off: %s", strerror(errno));
	nanosleep(&pause, NULL); /* it will be so again at once */
	return REFUSED;
}

static int admit_socket(int conn, struct taken *t)
{
	static const struct timeval patience = { KERNEL_S, 0 };

	if (setsockopt(conn, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) ||
	    setsockopt(conn, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) ||
	    !peer(conn, &t->pidfd, t) || !identify(t, 0) || !negotiate(conn, t)) {
		close(conn);
		return REFUSED;
	}
	t->hold = conn;
	return PROCESS;
}

/*
 * Wait for the kernel's next hand-off at a coredump socket, and gather. PROCESS: Python has to
 * gather if `gathered` is 0; REFUSED: not a process for us, `why` says why; CLOSED: so is the
 * listener.
 */
int coreward_take_socket(int listener, struct orders *o, struct taken *t)
{
	int conn, got = wait_for(listener, t, &conn);

	if (got != PROCESS)
		return got;
	o->busy++;
	got = admit_socket(conn, t);
	if (got == PROCESS)
		gather(o, t);
	else
		forget(t->pidfd);
	o->busy--;
	return got;
}

/* ---- the pipe helper's hand-off: pipe_helper.c says what it sends, pipe.py what is checked */

static int getfd(int pidfd, int fd)
{
	return (int)syscall(438 /* pidfd_getfd(2) */, pidfd, fd, 0);
}

static bool has_ended(int pidfd)
{
	return poll(&(struct pollfd){ pidfd, POLLIN, 0 }, 1, MESSAGE_MS) == 1;
}

/* Whether the helper at the other end is what it should be. */
static int authenticate(int conn, struct orders *o, struct taken *t, int *helper)
{
	struct ucred who;
	socklen_t size = sizeof(who);
	struct stat about;
	char path[64];

	if (getsockopt(conn, SOL_SOCKET, SO_PEERCRED, &who, &size) || who.uid) {
		because(t, "pid %d (uid %u) is not the kernel's helper", who.pid, who.uid);
		return REFUSED;
	}
	if (!peer(conn, helper, t))
		return LATE;
	snprintf(path, sizeof(path), "/proc/%d/exe", who.pid);
	if (stat(path, &about))
		return LATE;
	/* a helper that ended meanwhile may have left its pid to another program */
	if (about.st_dev == o->helper_device && about.st_ino == o->helper_inode)
		return PROCESS;
	because(t, "pid %d is not the program of the pipe hand-off", who.pid);
	return has_ended(*helper) ? LATE : REFUSED;
}

/* The numbers of the helper's line that matter here: pid, tid, signal, and its pidfd or -1. */
static bool parse(struct taken *t, int *tid, int *pidfd)
{
	long words[8] = { 0 };
	char *at = t->line;

	*pidfd = -1;
	for (int i = 0; i < 8; i++) {
		char *end = at;

		if (*at >= '0' && *at <= '9')
			words[i] = strtol(at, &end, 10);
		else if (*at == '-' && i == 7)
			words[i] = -1, end = at + 1;
		if (end == at || *end != (i == 7 ? '\n' : ' '))
			return because(t, "not a line of the pipe helper");
		at = end + 1;
	}
	t->pid = (int32_t)words[0];
	*tid = (int)words[1];
	t->signal = (int32_t)words[2];
	*pidfd = (int)words[7];
	return *at == 0 || because(t, "not a line of the pipe helper");
}

static int admit_pipe(int conn, struct orders *o, struct taken *t, int *helper)
{
	int got = authenticate(conn, o, t, helper), tid = 0, fd;
	struct stat about;
	ssize_t size;

	if (got != PROCESS)
		return got;
	if (poll(&(struct pollfd){ conn, POLLIN, 0 }, 1, MESSAGE_MS) != 1 ||
	    (size = recv(conn, t->line, sizeof(t->line) - 1, 0)) <= 0)
		return LATE;
	if (!parse(t, &tid, &fd))
		return REFUSED;
	t->hold = getfd(*helper, 0);
	if (t->hold < 0) {
		because(t, "cannot take the pipe of a helper: %s", strerror(errno));
		return has_ended(*helper) ? LATE : REFUSED;
	}
	if (fstat(t->hold, &about) || !S_ISFIFO(about.st_mode)) {
		because(t, "the helper's standard input is no pipe");
		return REFUSED;
	}
	t->pidfd = fd >= 0 ? getfd(*helper, fd) : open_pidfd(t->pid);
	if (t->pidfd < 0) {
		because(t, "pid %d is gone: %s", t->pid, strerror(errno));
		return REFUSED;
	}
	if (!identify(t, tid))
		return REFUSED;
	return send(conn, "\1", 1, MSG_NOSIGNAL) == 1 ? PROCESS : LATE;
}

/* The same for the pipe. LATE: the helper had given up, and leaves a note. */
int coreward_take_pipe(int listener, struct orders *o, struct taken *t)
{
	int conn, helper = -1, got = wait_for(listener, t, &conn);
	uint64_t heard;

	if (got != PROCESS)
		return got;
	o->busy++;
	heard = ++o->heard;
	/* a full disk: others have less patience, no more */
	if (pwrite(o->heard_fd, &heard, sizeof(heard), 0) < 0)
		errno = 0;
	got = admit_pipe(conn, o, t, &helper);
	close(conn);
	forget(helper);
	if (got == PROCESS) {
		gather(o, t);
	} else {
		forget(t->hold);
		forget(t->pidfd);
	}
	o->busy--;
	return got;
}

/*
 * Wait for `wake`, or an event of BPF in `ring`; a descriptor of -1 does not count. What BPF tells
 * first of a death comes before its hand-off, and Python would read it on a CPU that the process
 * needs: it gets a moment, and more while one is between hand-off and end.
 */
void coreward_wait(struct orders *o, int wake, int ring, int timeout_ms)
{
	struct pollfd fds[] = { { wake, POLLIN, 0 }, { ring, POLLIN, 0 } };

	poll(fds, 2, timeout_ms);
	for (int left = EVENTS_MS; fds[1].revents && !fds[0].revents && left > 0; left -= MOMENT_MS)
		if (poll(fds, 1, MOMENT_MS) || !o->busy)
			break;
}

/* The sizes of what is shared: native.py has to mean the same. */
uint64_t coreward_sizes(void)
{
	return sizeof(struct orders) << 32 | sizeof(struct taken);
}
