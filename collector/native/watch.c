/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The processes that wait for us, each with its deadline. Whoever gathers one may be kept waiting
 * by what the process controls, for ever; so somebody else, who touches nothing of any process,
 * lets it go when its time is over. Here is the table of both; the watchdog itself is in watchdog.c.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "native.h"

#define WATCHES (TAKERS + HANDS) /* one for each taker, and those that Python decides about */
#define SHARE (TAKERS / 4)   /* of them for processes of one owner */

static struct watch {
	struct orders *orders;     /* NULL: this place is free */
	int hold;
	bool native;               /* a taker of ours has it, Python knows nothing of it */
	bool cut;
	int32_t pid;
	uint64_t start_ticks;
	uint64_t owner;
	int64_t since_ns;
} watches[WATCHES];
static pthread_mutex_t table;

__attribute__((constructor)) static void prepare(void)
{
	make_lock(&table);
}

/* From now on `hold` is what keeps a process waiting. Without a free place nobody watches. */
void watch_begin(struct orders *o, struct taken *t, int hold)
{
	pthread_mutex_lock(&table);
	for (int i = 0; i < WATCHES && t->watch < 0; i++)
		if (!watches[i].orders) {
			watches[i] = (struct watch){ .orders = o,
						     .hold = hold,
						     .native = true,
						     .since_ns = t->accepted_ns };
			t->watch = i;
		}
	pthread_mutex_unlock(&table);
}

/* `hold` is it instead; false: its time was over before. */
bool watch_move(struct taken *t, int hold)
{
	bool cut = false;

	pthread_mutex_lock(&table);
	if (t->watch >= 0) {
		watches[t->watch].hold = hold;
		cut = watches[t->watch].cut;
	}
	pthread_mutex_unlock(&table);
	return !cut;
}

/*
 * Who it is. False: so many processes of its owner are being gathered, or keep a thread of ours
 * waiting, that it would be at the cost of others.
 */
bool watch_owner(struct taken *t)
{
	int others = 0;

	pthread_mutex_lock(&table);
	for (int i = 0; i < WATCHES; i++)
		others += watches[i].orders && watches[i].native && watches[i].owner == t->owner;
	if (t->watch >= 0) {
		watches[t->watch].pid = t->pid;
		watches[t->watch].start_ticks = t->start_ticks;
		watches[t->watch].owner = t->owner;
	}
	pthread_mutex_unlock(&table);
	return others < SHARE ||
	       because(t, "%d other processes of its user keep the agent waiting", others);
}

/* Python has it from now on, and says watch_end(). False: its time was over before. */
bool watch_hand_on(struct taken *t)
{
	bool cut = false;

	pthread_mutex_lock(&table);
	if (t->watch >= 0) {
		cut = watches[t->watch].cut;
		watches[t->watch].native = false;
	}
	pthread_mutex_unlock(&table);
	return !cut;
}

/* It is released, or waits because we want it to. False: its time was over before. */
bool watch_end(int watch)
{
	bool cut = false;

	pthread_mutex_lock(&table);
	if (watch >= 0) {
		cut = watches[watch].cut;
		watches[watch].orders = NULL;
	}
	pthread_mutex_unlock(&table);
	return !cut;
}

/*
 * Let a process go whose time is over, if there is one: its descriptor leads to `nothing` from now on. False: there is none. If a taker had it, `t` is what is known of it.
 */
bool watch_cut(struct orders *o, int nothing, struct taken *t)
{
	int64_t now = now_ns(), most = o->patience_ns;
	bool found = false;

	memset(t, 0, sizeof(*t));
	pthread_mutex_lock(&table);
	for (int i = 0; i < WATCHES && !found; i++) {
		struct watch *w = &watches[i];

		if (w->orders != o || w->cut || !most || now - w->since_ns <= most)
			continue;
		found = w->cut = true;
		dup2(nothing, w->hold);
		if (w->native) {
			reset(t);
			t->pid = t->tid = w->pid;
			t->start_ticks = w->start_ticks;
			t->accepted_ns = w->since_ns;
			t->released_ns = now;
			because(t, "its memory kept the agent waiting");
		}
	}
	pthread_mutex_unlock(&table);
	return found;
}

/* Whether anybody waits. */
bool watch_any(struct orders *o)
{
	bool found = false;

	pthread_mutex_lock(&table);
	for (int i = 0; i < WATCHES; i++)
		found = found || (watches[i].orders == o && !watches[i].cut);
	pthread_mutex_unlock(&table);
	return found;
}
