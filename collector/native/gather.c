/* SPDX-License-Identifier: Apache-2.0 */
/* Everything of a held process that goes with it, and its release if nothing speaks against it. */
#include <linux/kcmp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native.h"

#define MANY 500             /* threads: their mappings are worth a thread of ours */

/* From now on it is known that this process was taken, whoever sees its end first. Those that are
 * spared may be many: they leave half of the places to others. */
static struct hand *enter_hand(struct orders *o, struct taken *t)
{
	for (int i = 0; i < (t->spared ? HANDS / 2 : HANDS); i++) {
		int32_t nobody = 0;

		if (atomic_compare_exchange_strong(&o->in_hand[i].pid, &nobody, -1)) {
			o->in_hand[i].start_ticks = t->start_ticks;
			o->in_hand[i].pid = t->pid;
			return &o->in_hand[i];
		}
	}
	return NULL;
}

/* ---- all of it */

struct job {
	struct orders *orders;
	struct taken *taken;
};

static void *list_mappings(void *of)
{
	struct taken *t = ((struct job *)of)->taken;
	uint64_t to = t->area.at + t->area.size / 2;

	t->mappings = iterate(((struct job *)of)->orders->mappings_program, t->tid, true,
			      (char *)(uintptr_t)to, t->shared.at - to);
	open_shared(t);
	return NULL;
}

/* The same in a thread of its own, which is for processes with much of it: see MOMENT_NS. */
static void *list_beside(void *of)
{
	calm(0);
	return list_mappings(of);
}

static int64_t thread_count(struct taken *t)
{
	char text[8192];

	return field(text_of(t, STATUS, text, sizeof(text)), "Threads");
}

/* Threads and mappings, by BPF, and what their exit would change. */
static bool list(struct orders *o, struct taken *t)
{
	char *area = (char *)(uintptr_t)t->area.at;
	struct job job = { o, t };
	pthread_t beside;
	bool many = thread_count(t) >= MANY && !pthread_create(&beside, NULL, list_beside, &job);

	t->threads = iterate(o->threads_program, t->pid, false, area + TEXT,
			     t->area.size / 2 - TEXT);
	if (many)
		pthread_join(beside, NULL);
	else
		list_mappings(&job);
	if (!t->threads.size || !t->mappings.size)
		return because(t, "its %s cannot be listed", t->threads.size ? "mappings" : "threads");
	keep_words(t);
	return true;
}

/* Whether its parent has the same memory, by kcmp(2): all that can be known without BPF. */
static bool has_memory_of_parent(struct taken *t)
{
	char text[STAT_SIZE];
	int parent = (int)parent_of(text_of(t, STAT, text, sizeof(text)));

	return parent > 0 && !syscall(SYS_kcmp, t->tid, parent, KCMP_VM, 0, 0);
}

/* Who else uses its memory, and may go on writing to it (vfork(2), clone(2) with CLONE_VM). */
static void count_others(const struct orders *o, struct taken *t)
{
	struct cw_mapping first;
	bool vfork;

	if (t->mappings.size < sizeof(first)) {
		t->others = has_memory_of_parent(t) ? -2 : 0;
		return;
	}
	memcpy(&first, (const void *)(uintptr_t)t->mappings.at, sizeof(first));
	vfork = first.flags & CW_MAPPING_VFORK;
	first.others -= 1 + is_armed(o, t); /* the iterator itself, and our own pin */
	if (vfork && first.others <= 1)
		t->others = -1;
	else
		t->others = first.others > 0 ? first.others : 0;
}

static bool collect(struct orders *o, struct taken *t)
{
	bool bpf = o->threads_program >= 0;

	if (!make_area(t) || !open_process(t, !bpf) || (bpf && !t->spared && !list(o, t)))
		return false;
	if (!t->spared) {
		t->address = readable(t);
		count_others(o, t);
	}
	/* the iterators go by its number, which is another's once it was killed and reaped */
	return is_there(t) || because(t, "it has gone meanwhile");
}

/* Close everything that collect() has opened. */
static void abandon(struct taken *t)
{
	const struct shared *found = (const struct shared *)(uintptr_t)t->shared.at;

	for (size_t i = 0; i < t->shared.size / sizeof(*found); i++)
		close(found[i].fd);
	t->shared.size = 0;
	for (int i = 0; i < FDS; i++) {
		forget(t->fds[i]);
		t->fds[i] = -1;
	}
}

/* Of what was taken nothing is wanted. */
void discard(struct taken *t)
{
	watch_end(t->watch);
	abandon(t);
	forget(t->hold);
	forget(t->pidfd);
	coreward_drop(t);
}

/* It is not released by us after all: false. */
static bool take_back(struct orders *o, const struct taken *t, struct hand *hand)
{
	if (hand)
		hand->pid = 0;
	if (!t->spared)
		coreward_entered(o, t->private_size, t->levels, t->limits);
	return false;
}

/* Whether it may go without Python: with a pin, unless it is spared that. */
static bool may_go(struct orders *o, struct taken *t)
{
	if (!t->spared && o->instant && !o->stream && !t->others && !may_bid(o, t) && admit(o, t))
		return true;
	t->spared = t->spared || is_crowded(o, t); /* others of its owner may have been faster */
	return t->spared;
}

/* Pin its memory, unless it is spared that, and let it go. False: it is held still. */
static bool pin_and_release(struct orders *o, struct taken *t, bool *in_time)
{
	struct hand *hand;

	if (!may_go(o, t))
		return false;
	hand = enter_hand(o, t);
	if (!hand || (!t->spared && !pin_memory(o, t)))
		return take_back(o, t, hand);
	*in_time = watch_end(t->watch);
	t->watch = -1;
	if (!*in_time)
		return take_back(o, t, hand);
	t->released_ns = now_ns();
	close(t->hold);
	t->hold = -1;
	return true;
}

/*
 * Gather all of a held process that goes with it, and release it if nothing speaks against that.
 * False: its time was over, and there is nothing left of it.
 */
bool gather(struct orders *o, struct taken *t)
{
	bool in_time = true;

	t->gathered = collect(o, t);
	if (!t->gathered) {
		abandon(t);
		return true;
	}
	if (pin_and_release(o, t, &in_time))
		return true;
	if (in_time && t->spared) { /* too many are in hand: it is let go as it is */
		abandon(t);
		t->gathered = 0;
		return true;
	}
	if (in_time && watch_hand_on(t))
		return true;
	discard(t);
	unpin(o, t);
	return false;
}
