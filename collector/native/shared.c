/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files without a name behind the mappings of a process. Those of shared memory tell which pages
 * exist at all; those of code, which was deleted or replaced on disk since, have its symbols. They
 * stay open until its core is written, and one process may have thousands of them; so how many are
 * opened depends on how many descriptors the agent has open already.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "native.h"

#define FEW 16               /* files of one process, where descriptors begin to be short */
#define MAX_CODE 64          /* of them with code */
#define VM_EXEC 4            /* <linux/mm.h> */
#define VM_SHARED 8

/*
 * Whether a new descriptor is one too many for a process that has `count` such files. A new one gets
 * the lowest number that is free: all below it are open. So three quarters of RLIMIT_NOFILE stay for
 * everything else, and half of the rest for those who have few.
 */
static bool is_too_many(int fd, size_t count)
{
	struct rlimit limit;
	rlim_t used = (rlim_t)fd;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return true;
	return used >= limit.rlim_cur / 4 || (used >= limit.rlim_cur / 8 && count >= FEW);
}

/* The file behind a mapping; -1: it cannot be had. */
static int open_file(const struct taken *t, const struct cw_mapping *m)
{
	char name[64];

	snprintf(name, sizeof(name), "map_files/%llx-%llx", (unsigned long long)m->start,
		 (unsigned long long)m->end);
	return openat(t->fds[DIR_FD], name, O_RDONLY | O_CLOEXEC);
}

/*
 * Open them, and count in t->unopened those that are not. Not those that somebody else answers for:
 * opening one would ask him.
 */
void open_shared(struct taken *t)
{
	struct shared *found = (struct shared *)(uintptr_t)t->shared.at;
	uint64_t at = t->mappings.at, end = at + t->mappings.size;
	size_t count = 0, codes = 0, most = MAX_SHARED;

	while (at + sizeof(struct cw_mapping) <= end) {
		struct cw_mapping m;
		bool shared, code;
		int fd = -1;

		memcpy(&m, (const void *)(uintptr_t)at, sizeof(m)); /* paths make them unaligned */
		shared = m.vm_flags & VM_SHARED;
		code = !shared && m.vm_flags & VM_EXEC && codes < MAX_CODE;
		if (m.flags & CW_MAPPING_OWN_FS && (shared || code) && !m.nlink) {
			if (count < most)
				fd = open_file(t, &m);
			if (fd >= 0 && is_too_many(fd, count)) {
				close(fd);
				fd = -1;
				most = count; /* to try the others would be in vain */
			}
			if (fd >= 0)
				found[count++] = (struct shared){ m.start, fd, code };
			else
				t->unopened += shared;
			codes += fd >= 0 && code;
		}
		if (m.size < sizeof(m))
			break;
		at += m.size;
	}
	t->shared.size = count * sizeof(*found);
}
