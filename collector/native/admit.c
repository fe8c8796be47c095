/* SPDX-License-Identifier: Apache-2.0 */
/* May it go at once? As collector/agent/release.py, which is asked if this says no. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "native.h"

static pthread_mutex_t account = PTHREAD_MUTEX_INITIALIZER;

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
bool unlimited(const char *groups)
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
bool admit(struct orders *o, struct taken *t)
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
	t->private_size = (anonymous + (shmem > 0 ? shmem : 0) + (swap > 0 ? swap : 0)) * 1024;
	pthread_mutex_lock(&account);
	anonymous = o->open_bytes + o->fresh_bytes + t->private_size;
	fits = o->open_pins + o->fresh_pins < o->max_pins && anonymous <= o->max_pinned &&
	       anonymous <= available * 1024;
	if (fits) {
		o->fresh_pins++;
		o->fresh_bytes += t->private_size;
	}
	pthread_mutex_unlock(&account);
	return fits;
}

/* A pin that admit() has entered is in Python's account now, or has come to nothing. */
void coreward_entered(struct orders *o, int64_t size)
{
	pthread_mutex_lock(&account);
	o->fresh_pins--;
	o->fresh_bytes -= size;
	pthread_mutex_unlock(&account);
}
