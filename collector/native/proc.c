/* SPDX-License-Identifier: Apache-2.0 */
/* Files of /proc (proc(5)): read whole, and the few numbers of them that matter here. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native.h"

#define MOST (1L << 50)      /* of such a number: in kB, and in sums, still far from the end */

/*
 * The whole of a file that is open as `fd`, which is closed, to `to`, where `room` bytes are free.
 * Whether that is all of it, or the first `limit` bytes.
 */
bool read_text(int fd, size_t limit, char *to, size_t room, struct bytes *text)
{
	ssize_t got = -1;

	*text = (struct bytes){ (uintptr_t)to, 0 };
	while (fd >= 0 && text->size < limit && text->size < room) {
		size_t left = (room < limit ? room : limit) - text->size;

		got = read(fd, to + text->size, left);
		if (got <= 0)
			break;
		text->size += (size_t)got;
	}
	forget(fd);
	return got >= 0 && text->size < room;
}

/* The begin of a text, with a zero behind. */
char *text_of(struct taken *t, int which, char *to, size_t size)
{
	size_t have = t->texts[which].size < size - 1 ? t->texts[which].size : size - 1;

	memcpy(to, (void *)(uintptr_t)t->texts[which].at, have);
	to[have] = 0;
	return to;
}

#define PRESENT (UINT64_C(1) << 63)
#define SWAPPED (UINT64_C(1) << 62)
#define WRITE_PROTECTED (UINT64_C(1) << 57)

/*
 * Whether memory of the process is there, or in swap. What is not is never touched: it may be a
 * page that keeps whoever touches it waiting, for ever (userfaultfd, FUSE). A held process makes no
 * pages go or come. From /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
 */
bool resident(struct taken *t, uint64_t address, size_t size)
{
	uint64_t last;

	if (__builtin_add_overflow(address, size - 1, &last))
		return false;
	for (uint64_t page = address / CW_PAGE; page <= last / CW_PAGE; page++) {
		uint64_t entry;

		if (pread(t->fds[PAGEMAP], &entry, sizeof(entry), (off_t)(page * sizeof(entry))) !=
			    sizeof(entry) ||
		    !(entry & (PRESENT | SWAPPED)))
			return false;
		/* a write-protected page that is absent only looks like swap (userfaultfd) */
		if (!(entry & PRESENT) && entry & WRITE_PROTECTED)
			return false;
	}
	return true;
}

/* Where a field of /proc/PID/stat begins, counted as in proc_pid_stat(5); NULL: there is none. */
static const char *stat_field(const char *stat, int wanted)
{
	const char *at = strrchr(stat, ')'); /* the name may hold anything, also ')' */

	for (int number = 2; at && number < wanted; number++)
		at = strchr(at + 1, ' ');
	return at;
}

/* When a process started, in clock ticks since boot; 0: `stat` does not say. */
uint64_t start_ticks(const char *stat)
{
	const char *at = stat_field(stat, 22);

	return at ? strtoull(at, NULL, 10) : 0;
}

/* The number of its parent; 0: `stat` does not say, or it is one of another pid namespace. */
int64_t parent_of(const char *stat)
{
	const char *at = stat_field(stat, 4);

	return at ? strtoll(at, NULL, 10) : 0;
}

/* Whether the arguments of a process can be read without waiting. */
bool has_arguments(struct taken *t, const char *stat)
{
	const char *at = stat_field(stat, 48);
	uint64_t start, end;
	char *next;

	if (!at)
		return false;
	start = strtoull(at, &next, 10);
	end = strtoull(next, NULL, 10);
	if (end > start && end - start > MAX_CMDLINE)
		end = start + MAX_CMDLINE;
	return start < end && resident(t, start, end - start);
}

/*
 * The number in a field, in kB perhaps; -1: there is none that can be. `text` ends with a zero.
 * A colon or a space follows the name.
 */
int64_t field(const char *text, const char *name)
{
	size_t size = strlen(name);
	int64_t number = -1;

	for (const char *line = text; line && number == -1; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, size) && (line[size] == ':' || line[size] == ' '))
			number = strtoll(line + size + 1, NULL, 10);
	}
	return number >= 0 && number <= MOST ? number : -1;
}

bool small_file(const char *path, char *to, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, to, size - 1);

	forget(fd);
	to[got > 0 ? got : 0] = 0;
	return got > 0;
}

/* Whether the process that was handed over still has its number: it was not reaped. */
bool is_there(struct taken *t)
{
	return !syscall(424 /* pidfd_send_signal(2) */, t->pidfd, 0, NULL, 0) || errno == EPERM;
}
