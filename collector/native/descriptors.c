/* SPDX-License-Identifier: Apache-2.0 */
/* Which files a held process has open: its end closes them all, so they are listed before it. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native.h"

#define MOST 256             /* descriptors that are listed, the lowest, as of a snapshot */
#define LONGEST 1024         /* bytes of a target */
#ifndef LIST_NS
#define LIST_NS 50000        /* the process waits so long for it at most; one takes 1,000 to 4,000 */
#endif

struct entry {
	uint64_t inode;
	int64_t next;
	uint16_t size;
	uint8_t type;
	char name[];
};

/* One line, `FD TARGET`, with a zero at its end; its length, 0: there is no room, or it is gone. */
static size_t list_one(int folder, const char *name, char *to, size_t room)
{
	size_t head = strlen(name) + 1;
	ssize_t got;

	if (room < head + LONGEST + 1)
		return 0;
	got = readlinkat(folder, name, to + head, LONGEST);
	if (got < 0)
		return 0;
	memcpy(to, name, head - 1);
	to[head - 1] = ' ';
	to[head + (size_t)got] = 0;
	return head + (size_t)got + 1;
}

/*
 * The open files of a process by its folder of /proc, to `to`: their number, which Linux tells since
 * 6.2 as the size of /proc/PID/fd (else 0), and the lowest of them; each with a zero at its end. The
 * links are read and not followed: no file system is asked. getdents64(2) with room for few makes
 * the kernel look at few.
 */
void list_descriptors(int folder, char *to, size_t room, struct bytes *text)
{
	int fd = openat(folder, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC), listed = 0;
	int64_t end = now_ns() + LIST_NS;
	_Alignas(struct entry) char some[1024];
	struct stat about;
	long got;

	*text = (struct bytes){ (uintptr_t)to, 0 };
	if (fd < 0 || fstat(fd, &about) || room < 32) {
		forget(fd);
		return;
	}
	text->size = (size_t)snprintf(to, room, "%lld", (long long)about.st_size) + 1;
	while ((got = syscall(SYS_getdents64, fd, some, sizeof(some))) > 0) {
		for (long at = 0; at < got; at += ((struct entry *)(some + at))->size) {
			const char *name = ((struct entry *)(some + at))->name;

			if (*name == '.')
				continue;
			if (listed++ == MOST || now_ns() > end)
				goto done;
			text->size += list_one(fd, name, to + text->size, room - text->size);
		}
	}
done:
	close(fd);
}
