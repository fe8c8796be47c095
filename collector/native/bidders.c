/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a dumper might bid for a process: then it stays held, until Python has asked. What is said
 * here may be yes where Python says no, which costs the process a moment; never the other way.
 */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "native.h"

static pthread_mutex_t lock; /* of all rows */

__attribute__((constructor)) static void prepare(void)
{
	make_lock(&lock);
}

void coreward_bidders(struct orders *o, const struct bidder *rows, int32_t count)
{
	pthread_mutex_lock(&lock);
	memcpy(o->bidder, rows, (size_t)count * sizeof(*rows));
	o->bidders = count;
	pthread_mutex_unlock(&lock);
}

/* Whether a text is like a pattern, where `*` stands for any part of it. */
bool is_like(const char *text, const char *pattern)
{
	const char *star = NULL, *again = NULL;

	while (*text) {
		if (*pattern == '*') {
			star = pattern++;
			again = text;
		} else if (*pattern == *text) {
			pattern++;
			text++;
		} else if (star) { /* the star has one more */
			pattern = star + 1;
			text = ++again;
		} else {
			return false;
		}
	}
	while (*pattern == '*')
		pattern++;
	return !*pattern;
}

/* What rows are compared with. */
struct seen {
	int64_t uid;
	char comm[BIDDER_COMM];
	char exe[PATH_MAX];
	char cgroup[8192];
};

static void name_of(const char *status, char *to, size_t size)
{
	const char *name = strncmp(status, "Name:\t", 6) ? "" : status + 6;
	size_t length = strcspn(name, "\n");

	length = length < size - 1 ? length : size - 1;
	memcpy(to, name, length);
	to[length] = 0;
}

static void look(struct taken *t, struct seen *seen)
{
	char status[8192], link[32];
	ssize_t got;

	text_of(t, STATUS, status, sizeof(status));
	seen->uid = field(status, "Uid");
	name_of(status, seen->comm, sizeof(seen->comm));
	snprintf(link, sizeof(link), "/proc/self/fd/%d", t->fds[EXE]);
	got = readlink(link, seen->exe, sizeof(seen->exe) - 1);
	seen->exe[got > 0 ? got : 0] = 0;
	text_of(t, CGROUP, seen->cgroup, sizeof(seen->cgroup));
}

static bool has_uid(const struct bidder *b, int64_t uid)
{
	for (int32_t i = 0; i < b->uid_count && i < BIDDER_UIDS; i++)
		if (b->uids[i] == uid)
			return true;
	return !b->uid_count;
}

static bool wants(const struct bidder *b, const struct taken *t, const struct seen *seen)
{
	if (t->signal > 0 && t->signal <= 64 && !(b->signals >> (t->signal - 1) & 1))
		return false;
	return has_uid(b, seen->uid) && (!*b->comm || is_like(seen->comm, b->comm)) &&
	       (!*b->exe || is_like(seen->exe, b->exe)) &&
	       (!*b->cgroup || t->texts[CGROUP].size >= sizeof(seen->cgroup) ||
		is_like(seen->cgroup, b->cgroup));
}

bool may_bid(struct orders *o, struct taken *t)
{
	struct seen seen;
	bool found = false;

	if (!o->bidders)
		return false;
	look(t, &seen);
	pthread_mutex_lock(&lock);
	for (int32_t i = 0; i < o->bidders && !found; i++)
		found = wants(&o->bidder[i], t, &seen);
	pthread_mutex_unlock(&lock);
	return found;
}
