/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes of a crowd of which nothing was gathered, as Python had enough of their like to see to.
 * BPF tells it of their deaths, and whoever makes a record of one asks here why there is no core.
 */
#include <pthread.h>

#include "native.h"

#define LAST 4096            /* so many are known */

static struct { int32_t pid; uint64_t start_ticks; } last[LAST];
static unsigned int next;
static pthread_mutex_t lock;

__attribute__((constructor)) static void prepare(void)
{
	make_lock(&lock);
}

void note_spared(const struct taken *t)
{
	pthread_mutex_lock(&lock);
	last[next].pid = t->pid;
	last[next].start_ticks = t->start_ticks;
	next = (next + 1) % LAST;
	pthread_mutex_unlock(&lock);
}

int coreward_was_spared(int pid, uint64_t start_ticks)
{
	int found = 0;

	pthread_mutex_lock(&lock);
	for (int i = 0; i < LAST && !found; i++)
		found = last[i].pid == pid && last[i].start_ticks == start_ticks;
	pthread_mutex_unlock(&lock);
	return found;
}
