/* SPDX-License-Identifier: Apache-2.0 */
/* May it go at once? As collector/agent/release.py, which is asked if this says no. */
#include <pthread.h>
#include <string.h>

#include "native.h"

static pthread_mutex_t lock; /* of both accounts */

__attribute__((constructor)) static void prepare(void)
{
	make_lock(&lock);
}

static struct level *find(struct account *a, const struct level *wanted)
{
	for (int64_t i = 0; i < a->count; i++)
		if (a->levels[i].device == wanted->device && a->levels[i].inode == wanted->inode)
			return &a->levels[i];
	return NULL;
}

static int64_t counted(struct account *a, const struct level *wanted)
{
	const struct level *found = find(a, wanted);

	return found ? found->bytes : 0;
}

/* What one more pin of this process takes of a level: bytes, or of its owner's share one pin. */
static int64_t share(const struct level *l, int64_t size)
{
	return l->device == OWNER_DEVICE ? 1 : size;
}

/* Whose pin it is: an owner has half of them, and of what may be pinned, so that the others' processes
 * go at once as well. Of cgroups there are DEPTH at most. */
static void add_owner(struct orders *o, struct taken *t)
{
	int64_t most = o->max_pins / 2;

	t->levels[t->limits++] = (struct level){ OWNER_DEVICE, t->owner, most ? most : 1 };
	t->levels[t->limits++] = (struct level){ OWNER_BYTES, t->owner, o->max_pinned / 2 };
}

/*
 * Whether its owner has its share of the pins, and they are more than can be written in the time
 * that a process may wait: this one would only wait behind them. As collector/agent/crowd.py.
 */
bool is_crowded(struct orders *o, const struct taken *t)
{
	const struct level owner = { OWNER_DEVICE, t->owner, 0 };
	int64_t share = o->max_pins / 2, mine, all;

	pthread_mutex_lock(&lock);
	mine = counted(&o->open, &owner) + counted(&o->fresh, &owner);
	all = o->open.pins + o->fresh.pins;
	pthread_mutex_unlock(&lock);
	return o->instant && !o->stream && o->patience_ns &&
	       mine >= (share > HANDFUL ? share : HANDFUL) && all * o->capture_ns > o->patience_ns;
}

/* Whether a successor of this size has room in each of its cgroups, beside those of other pins; and
 * the pin in its owner's shares. One that is its owner's only one may have more bytes. */
static bool has_room(struct orders *o, const struct taken *t)
{
	if (!t->limits)
		return true;
	if (o->open.count > LEVELS || o->fresh.count + t->limits > LEVELS)
		return false;
	for (int i = 0; i < t->limits; i++) {
		const struct level *l = &t->levels[i];
		int64_t others = counted(&o->open, l) + counted(&o->fresh, l);

		if (others + share(l, t->private_size) > l->bytes && (others || l->device != OWNER_BYTES))
			return false;
	}
	return true;
}

static void enter(struct account *a, const struct taken *t)
{
	a->pins++;
	a->bytes += t->private_size;
	for (int i = 0; i < t->limits; i++) {
		struct level *found = find(a, &t->levels[i]);

		if (!found) {
			found = &a->levels[a->count++];
			*found = (struct level){ t->levels[i].device, t->levels[i].inode, 0 };
		}
		found->bytes += share(found, t->private_size);
	}
}

/* Enter a pin of this process in the account, if there is room for a successor of its size. */
bool admit(struct orders *o, struct taken *t)
{
	char text[8192];
	int64_t anonymous, available, shmem, swap, others;
	bool fits;

	text_of(t, STATUS, text, sizeof(text));
	anonymous = field(text, "RssAnon");
	shmem = field(text, "RssShmem");
	swap = field(text, "VmSwap");
	if (anonymous < 0 || t->texts[CGROUP].size >= sizeof(text))
		return false;
	t->private_size = (anonymous + (shmem > 0 ? shmem : 0) + (swap > 0 ? swap : 0)) * 1024;
	pthread_mutex_lock(&lock);
	others = o->open.bytes + o->fresh.bytes;
	pthread_mutex_unlock(&lock);
	if (!find_levels(t, text_of(t, CGROUP, text, sizeof(text)), others + t->private_size) ||
	    !small_file("/proc/meminfo", text, sizeof(text)) ||
	    (available = field(text, "MemAvailable")) < 0)
		return false;
	add_owner(o, t);
	pthread_mutex_lock(&lock);
	others = o->open.bytes + o->fresh.bytes + t->private_size;
	fits = o->open.pins + o->fresh.pins < o->max_pins && others <= o->max_pinned &&
	       others <= available * 1024 && has_room(o, t);
	if (fits)
		enter(&o->fresh, t);
	pthread_mutex_unlock(&lock);
	return fits;
}

/* A pin that admit() has entered is in Python's account now, or has come to nothing. */
void coreward_entered(struct orders *o, int64_t size, const struct level *levels, int32_t count)
{
	struct account *a = &o->fresh;

	pthread_mutex_lock(&lock);
	a->pins--;
	a->bytes -= size;
	for (int32_t i = 0; i < count; i++) {
		struct level *found = find(a, &levels[i]);

		if (found && (found->bytes -= share(found, size)) <= 0)
			*found = a->levels[--a->count];
	}
	pthread_mutex_unlock(&lock);
}

void coreward_count(struct orders *o, const struct account *open)
{
	pthread_mutex_lock(&lock);
	o->open = *open;
	pthread_mutex_unlock(&lock);
}

void coreward_fresh(const struct orders *o, struct account *fresh)
{
	pthread_mutex_lock(&lock);
	*fresh = o->fresh;
	pthread_mutex_unlock(&lock);
}
