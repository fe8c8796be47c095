/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel starts for each crash when core_pattern is a pipe (core(5)). It tells the agent
 * who is dying, lets the agent take the pipe, and leaves. If the agent is absent or does not answer
 * in time it leaves a note for the agent's next start; when it exits, the process goes. A busy agent
 * gets more time for as long as it hears others of us. PATIENCE is the time in ms, of which the
 * helper takes MARGIN_MS off for its own start and end.
 *
 *     |/path/coreward-pipe RUNDIR pPATIENCE %P %I %s %u %g %d %t %F
 *
 * Without the p it is a pattern of an earlier version, which has no such word.
 *
 * It never passes the pipe on by itself: a descriptor in the queue of an agent that hangs would
 * hold the process for ever. The agent takes it with pidfd_getfd(2), and answers with one byte.
 * From then on the agent alone holds the process, and its death lets go.
 *
 * No libc, no heap, no relocations: its start is part of the time that a process is held.
 */
#include <linux/fcntl.h>
#include <linux/poll.h>
#include <linux/socket.h>
#include <linux/stat.h>
#include <linux/time.h>
#include <linux/un.h>

#define PRIORITY -10 /* a nice value, as the agent's threads have it that a process waits for */
#define LEAST_MS 50 /* as policy allows it */
#define MOST_MS 60000
#define USUAL_MS 250
#define MARGIN_MS 20
#define LOOK_MS 10 /* how often we see whether the agent gets on with others */
#define PATIENCE_MAX_MS 5000 /* with an agent that does; or PATIENCE, if that is longer */
#define NOTES_LIMIT (1 << 20) /* bytes; deaths beyond it are only counted */
#define FIELDS 8 /* %P %I %s %u %g %d %t %F */

/* of <sys/socket.h> and <unistd.h>, which belong to libc; the same on all architectures but MIPS */
enum { SOCK_STREAM_ = 1, SOCK_CLOEXEC_ = 02000000, SHUT_RDWR_ = 2, MSG_DONTWAIT_ = 0x40,
       SOL_SOCKET_ = 1, SO_SNDTIMEO_ = 21, MSG_NOSIGNAL_ = 0x4000,
       AF_UNIX_ = 1, SEEK_END_ = 2 };

#include "libcless.h"

struct text {
	char data[512];
	long size;
};

/* Adds a string; one that does not fit is cut, and the agent refuses the line. */
static void add(struct text *to, const char *s)
{
	while (*s && to->size < (long)sizeof(to->data) - 1)
		to->data[to->size++] = *s++;
}

static void add_path(struct text *to, const char *dir, const char *name)
{
	to->size = 0;
	add(to, dir);
	add(to, name);
	to->data[to->size] = 0;
}

static long now_ms(void)
{
	struct timespec t = { 0, 0 };

	CALL(clock_gettime, CLOCK_MONOTONIC, &t, 0, 0, 0);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* How many of us the agent has heard since it started: 8 bytes. */
static unsigned long heard(long fd)
{
	unsigned long count = 0;

	CALL(pread64, fd, &count, sizeof(count), 0, 0);
	return count;
}

/*
 * Wait for the agent's answer: until it has heard nobody for as long as we have patience. So an
 * agent that hangs is given up in time, and one that has many of us to hear is not.
 */
static void await(long fd, long count_fd, long begun, long patience)
{
	long most = patience > PATIENCE_MAX_MS ? patience : PATIENCE_MAX_MS;
	struct pollfd wait = { .fd = (int)fd, .events = POLLIN };
	unsigned long count = heard(count_fd), before = count;
	long now = now_ms(), alive = begun;

	while (now < alive + patience && now < begun + most) {
		struct timespec look = { 0, LOOK_MS * 1000000 };

		if (CALL(ppoll, &wait, 1, &look, 0, 0) > 0)
			return;
		now = now_ms();
		count = heard(count_fd);
		if (count != before)
			alive = now;
		before = count;
	}
}

/* Whether the agent has taken the pipe. */
static int agent_took_it(const char *dir, long patience, const struct text *line)
{
	long begun = now_ms();
	struct timeval limit = { patience / 1000, patience % 1000 * 1000 };
	struct sockaddr_un at = { .sun_family = AF_UNIX_ };
	struct text path;
	char answer = 0;
	long i, fd, count_fd;

	add_path(&path, dir, "/pipe.sock");
	if (path.size >= (long)sizeof(at.sun_path))
		return 0;
	for (i = 0; i <= path.size; i++)
		at.sun_path[i] = path.data[i];
	fd = CALL(socket, AF_UNIX_, SOCK_STREAM_ | SOCK_CLOEXEC_, 0, 0, 0);
	if (fd < 0)
		return 0;
	/* connect(2) waits that long if the backlog is full */
	CALL(setsockopt, fd, SOL_SOCKET_, SO_SNDTIMEO_, &limit, sizeof(limit));
	if (CALL(connect, fd, &at, sizeof(at), 0, 0) < 0)
		return 0;
	if (call(__NR_sendto, fd, (long)line->data, line->size, MSG_NOSIGNAL_, 0) != line->size)
		return 0;
	add_path(&path, dir, "/pipe.heard");
	count_fd = CALL(openat, AT_FDCWD, path.data, O_RDONLY | O_NOFOLLOW | O_CLOEXEC, 0, 0);
	await(fd, count_fd, begun, patience);
	/* After this the agent cannot answer any more, so both know how it ended. */
	CALL(shutdown, fd, SHUT_RDWR_, 0, 0, 0);
	return call(__NR_recvfrom, fd, (long)&answer, 1, MSG_DONTWAIT_, 0) == 1 && answer == 1;
}

/* Field 22 of /proc/PID/stat, the start time in ticks; "-" if it cannot be had. */
static void add_start(struct text *line, const char *pid)
{
	static char stat[1024];
	struct text path;
	long fd, size, i, end = -1, field = 2;

	add_path(&path, "/proc/", pid);
	add(&path, "/stat");
	path.data[path.size] = 0;
	fd = CALL(openat, AT_FDCWD, path.data, O_RDONLY | O_CLOEXEC, 0, 0);
	size = fd < 0 ? 0 : CALL(read, fd, stat, sizeof(stat) - 1, 0, 0);
	for (i = 0; i < size; i++) /* the name may hold anything, also ')' */
		if (stat[i] == ')')
			end = i;
	for (i = end; end >= 0 && i < size && field < 22; i++)
		field += stat[i] == ' ';
	if (field < 22) {
		add(line, "-");
		return;
	}
	for (size = i; stat[size] >= '0' && stat[size] <= '9'; size++)
		;
	stat[size] = 0;
	add(line, stat + i);
}

/* Append to a file in the run directory; negative if it could not be done. */
static long append(const char *dir, const char *name, const char *data, long size, long limit)
{
	static struct statx about;
	struct text path;
	long fd, tries, r;

	add_path(&path, dir, name);
	for (tries = 0; tries < 4; tries++) {
		fd = CALL(openat, AT_FDCWD, path.data,
			  O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600, 0);
		if (fd < 0)
			return fd;
		r = CALL(lseek, fd, 0, SEEK_END_, 0, 0);
		if (r < 0 || r > limit)
			return -1;
		r = CALL(write, fd, data, size, 0, 0);
		if (r != size)
			return -1;
		/* The agent takes a file by unlinking, then reading it: were we too late? */
		r = CALL(statx, fd, "", AT_EMPTY_PATH, STATX_NLINK, &about);
		if (r < 0 || about.stx_nlink)
			return 0;
	}
	return -1;
}

static void leave_note(const char *dir, struct text *line, const char *pid)
{
	static const char lost[] = "<4>coreward-pipe: no agent, and no note of a crash could be left\n";
	long fd;

	line->size--; /* the line's end */
	add(line, " ");
	add_start(line, pid);
	add(line, "\n");
	if (append(dir, "/notes", line->data, line->size, NOTES_LIMIT) == 0)
		return;
	if (append(dir, "/notes.lost", "+", 1, NOTES_LIMIT) == 0)
		return;
	fd = CALL(openat, AT_FDCWD, "/dev/kmsg", O_WRONLY | O_NONBLOCK | O_CLOEXEC, 0, 0);
	if (fd >= 0)
		CALL(write, fd, lost, sizeof(lost) - 1, 0, 0);
}

/* The patience in ms, whatever the word says. */
static long patience_of(const char *word)
{
	long value = 0;

	for (word++; *word >= '0' && *word <= '9' && value < MOST_MS; word++)
		value = value * 10 + (*word - '0');
	return value < LEAST_MS ? LEAST_MS : value > MOST_MS ? MOST_MS : value;
}

static int report(long argc, char **argv)
{
	static struct text line;
	long i, patience = USUAL_MS, first = 2;

	CALL(setpriority, 0 /* PRIO_PROCESS */, 0, PRIORITY, 0, 0);
	if (argc > 2 && argv[2][0] == 'p') {
		patience = patience_of(argv[2]);
		first = 3;
	}
	if (argc <= first)
		return 2;
	for (i = first; i < first + FIELDS; i++) {
		/* an older kernel leaves out what it does not know */
		add(&line, i < argc && argv[i][0] ? argv[i] : "-");
		add(&line, i == first + FIELDS - 1 ? "\n" : " ");
	}
	if (!agent_took_it(argv[1], patience - MARGIN_MS, &line))
		leave_note(argv[1], &line, argv[first]);
	return 0;
}
