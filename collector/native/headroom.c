/* SPDX-License-Identifier: Apache-2.0 */
/* How much room there is in the memory cgroups above a process: as collector/linux/memory.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "native.h"

#ifndef CGROUPS              /* a test has a tree of its own */
#define CGROUPS "/sys/fs/cgroup"
#endif

/* The files of one version of cgroups: Documentation/admin-guide/cgroup-{v1/memory,v2}.rst. */
struct gate {
	const char *limits[2], *usage, *cache;
};

static const struct gate v1 = { { "memory.limit_in_bytes", NULL }, "memory.usage_in_bytes",
				"total_inactive_file" };
static const struct gate v2 = { { "memory.max", "memory.high" }, "memory.current",
				"inactive_file" };

/* The content of a file in a folder; an empty text, if there is none. */
static const char *read_in(const char *folder, const char *name, char *to, size_t size)
{
	char path[4200];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	small_file(path, to, size);
	return to;
}

/* The number in such a file; -1: it has none ("max"), or is not there. */
static int64_t number_in(const char *folder, const char *name)
{
	char text[32];

	read_in(folder, name, text, sizeof(text));
	return text[0] >= '0' && text[0] <= '9' ? strtoll(text, NULL, 10) : -1;
}

/* Bytes of a cgroup's usage that the kernel drops when it needs room. */
static int64_t reclaimable(const char *folder, const struct gate *g, int64_t used)
{
	char text[16384];
	int64_t cache = field(read_in(folder, "memory.stat", text, sizeof(text)), g->cache);

	return cache < 0 ? 0 : cache < used ? cache : used;
}

/* Enter the room in one cgroup, if it has a limit. Whether that is known. */
static bool add_level(struct taken *t, const char *folder, const struct gate *g, int64_t enough)
{
	int64_t limit = NO_LIMIT, used, room;
	struct stat about;

	for (int i = 0; i < 2 && g->limits[i]; i++) {
		int64_t one = number_in(folder, g->limits[i]);

		if (one >= 0 && one < limit)
			limit = one;
	}
	if (limit == NO_LIMIT)
		return true;
	used = number_in(folder, g->usage);
	if (t->limits == DEPTH || used < 0 || stat(folder, &about))
		return false;
	room = limit - used;
	if (room < enough) /* else that file is not worth its time: the kernel adds up all below */
		room += reclaimable(folder, g, used);
	t->levels[t->limits++] = (struct level){ about.st_dev, about.st_ino, room };
	return true;
}

/* The cgroup `path` below `root`, and all above it. */
static bool add_levels(struct taken *t, const char *root, const char *path, size_t size,
		       const struct gate *g, int64_t enough)
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

		if (!add_level(t, here, g, enough))
			return false;
		slash = strrchr(here, '/');
		if (!slash || slash < here + base)
			return true;
		*slash = 0;
	}
}

/*
 * The memory cgroups with a limit above a process, to `levels`. Whether all of them can be seen.
 * `groups`: its /proc/PID/cgroup (cgroups(7)), with a zero at its end. `enough`: where there is room
 * for so many bytes, how much more does not matter.
 */
bool find_levels(struct taken *t, const char *groups, int64_t enough)
{
	static const char top[] = CGROUPS, unified[] = CGROUPS "/unified";

	t->limits = 0;
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
				if (!add_levels(t, stat(unified, &about) ? top : unified, path + 1,
						size, &v2, enough))
					return false;
			} else if (strstr(list, ",memory,")) {
				if (!add_levels(t, CGROUPS "/memory", path + 1, size, &v1,
						enough))
					return false;
			}
		}
		line = *end ? end + 1 : end;
	}
	return true;
}
