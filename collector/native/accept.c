/* SPDX-License-Identifier: Apache-2.0 */
/* What both ways of the kernel's hand-off share: who is at the other end, and is it dying? */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "native.h"

#define EVENTS_MS 100        /* events are read this late at most */

int64_t now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

void forget(int fd)
{
	if (fd >= 0)
		close(fd);
}

__attribute__((format(printf, 2, 3)))
bool because(struct taken *t, const char *format, ...)
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
#define HAS_CGROUP 4
#define HAS_COREDUMP 16
#define HAS_SIGNAL 64
#define DUMPED 1

int open_pidfd(int pid)
{
	return (int)syscall(434 /* pidfd_open(2) */, pid, 0);
}

/* Who connected: a new descriptor of that process. */
bool peer(int conn, int *pidfd, struct taken *t)
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

/* Whose share of us it uses, as far as the kernel told who it is. */
static uint64_t owner_told(const struct pidfd_info *info, int pid)
{
	uint64_t cgroup = info->mask & HAS_CGROUP ? info->cgroupid : 0;
	struct stat about;
	char path[32];

	if (info->mask & HAS_CREDS)
		return owner_of(pid, info->ruid, cgroup);
	snprintf(path, sizeof(path), "/proc/%d", pid);
	return stat(path, &about) ? 0 : owner_of(pid, about.st_uid, cgroup);
}

static uint64_t start_of(int pid)
{
	char path[32], text[STAT_SIZE];

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	return small_file(path, text, sizeof(text)) ? start_ticks(text) : 0;
}

static bool tells(struct taken *t, int tid)
{
	struct pidfd_info info = {
		.mask = HAS_PID | HAS_CREDS | HAS_CGROUP | HAS_COREDUMP | HAS_SIGNAL
	};

	if (ioctl(t->pidfd, GET_INFO, &info)) {
		if (errno == ESRCH || t->pid <= 0)
			return because(t, "nothing is known of a process: %s", strerror(errno));
		info.mask = 0;
		t->owner = owner_told(&info, t->pid);
		return status_tells_dump(t, tid ? tid : t->pid);
	}
	if (!(info.mask & HAS_PID) || !info.tgid)
		return because(t, "the process is not visible in this pid namespace");
	t->pid = (int32_t)info.tgid;
	t->owner = owner_told(&info, t->pid);
	if (!(info.mask & HAS_COREDUMP))
		return status_tells_dump(t, tid ? tid : t->pid);
	if (!(info.coredump_mask & DUMPED))
		return because(t, "pid %d (uid %u) is not dumping core", t->pid, info.ruid);
	if (info.mask & HAS_SIGNAL)
		t->signal = (int32_t)info.coredump_signal;
	return true;
}

/* tid: of the thread that died, where the helper told it; else 0. */
bool identify(struct taken *t, int tid)
{
	if (!tells(t, tid))
		return false;
	t->start_ticks = start_of(t->pid);
	return is_there(t) || because(t, "pid %d has gone", t->pid);
}

void reset(struct taken *t)
{
	memset(t, 0, sizeof(*t));
	t->hold = t->pidfd = t->signal = t->pin = t->pin_fd = t->watch = -1;
	for (int i = 0; i < FDS; i++)
		t->fds[i] = -1;
}

/* Wait for a connection: an enum answer. PROCESS: the descriptor is in `conn`. */
int wait_for(int listener, struct taken *t, int *conn)
{
	static const struct timespec pause = { 0, 20 * 1000000 };

	*conn = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	reset(t);
	t->accepted_ns = now_ns();
	if (*conn >= 0)
		return PROCESS;
	if (errno == EAGAIN || errno == EINTR)
		return NOBODY;
	if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS &&
	    errno != ECONNABORTED)
		return CLOSED;
	because(t, "cannot accept a hand-off: %s", strerror(errno));
	nanosleep(&pause, NULL); /* it will be so again at once */
	return REFUSED;
}

void coreward_busy(struct orders *o, int more)
{
	o->busy += more;
}

uint64_t coreward_sizes(void)
{
	return sizeof(struct orders) << 32 | sizeof(struct taken);
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
