/* SPDX-License-Identifier: Apache-2.0 */
/* The pipe helper's hand-off: pipe_helper.c says what it sends, pipe.py what is checked. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native.h"

#define MESSAGE_MS 20        /* the helper sends its line at once after it connects */
#define STREAM_BUFFER (1 << 20) /* bytes of pipe: fewer wake-ups for the notes of many threads */

static int getfd(int pidfd, int fd)
{
	return (int)syscall(438 /* pidfd_getfd(2) */, pidfd, fd, 0);
}

static bool has_ended(int pidfd)
{
	return poll(&(struct pollfd){ pidfd, POLLIN, 0 }, 1, MESSAGE_MS) == 1;
}

/* Whether a program is what is at a path now, and root's. */
static bool is_at(const char *path, const struct stat *program)
{
	struct stat now;

	return !stat(path, &now) && !now.st_uid && !(now.st_mode & 022) &&
	       now.st_dev == program->st_dev && now.st_ino == program->st_ino;
}

/*
 * Whether a program is what the kernel starts for a crash: the file that it was when we began to
 * listen, or the one that is there now. An upgrade puts another one in its place while we go on: in
 * our own root, and in that of process 1, where the kernel looks whatever is mounted in ours. */
static bool is_helper(const struct orders *o, const struct stat *program)
{
	char path[sizeof("/proc/1/root") + HELPER_PATH];

	if (program->st_dev == o->helper_device && program->st_ino == o->helper_inode)
		return true;
	snprintf(path, sizeof(path), "/proc/1/root%s", o->helper_path);
	return *o->helper_path && (is_at(o->helper_path, program) || is_at(path, program));
}

/* Whether the helper at the other end is what it should be. */
static int authenticate(int conn, struct orders *o, struct taken *t, int *helper)
{
	struct ucred who = { 0 };
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
	if (is_helper(o, &about))
		return PROCESS;
	because(t, "pid %d is not the program of the pipe hand-off", who.pid);
	return has_ended(*helper) ? LATE : REFUSED;
}

/* The numbers of the helper's line that matter here: pid, tid, signal, and its pidfd or -1. */
bool parse_line(struct taken *t, int *tid, int *pidfd)
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
		if (end == at || end - at > DIGITS || *end != (i == 7 ? '\n' : ' '))
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
	if (!parse_line(t, &tid, &fd))
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
	if (!watch_move(t, t->hold))
		return LATE;
	if (o->stream) /* it fails beyond the user's limit: slower, not wrong */
		fcntl(t->hold, F_SETPIPE_SZ, STREAM_BUFFER);
	return send(conn, "\1", 1, MSG_NOSIGNAL) == 1 ? PROCESS : LATE;
}

/* An enum answer; the connection stays the caller's. */
int take_pipe(int conn, struct orders *o, struct taken *t)
{
	int helper = -1, got;

	if (o->heard) /* not written to the file: that can wait for a disk, and for other takers */
		++*(_Atomic uint64_t *)(uintptr_t)o->heard;
	got = admit_pipe(conn, o, t, &helper);
	forget(helper);
	return got;
}
