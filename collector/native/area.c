/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Address space for all that is to be found of a process: memory only where it is written.
 *
 * A few areas are kept. To get one from the kernel, or to give it back, a thread waits for all others
 * of ours that do the like; one of low priority was kept from the CPU for 100 ms while it did, and a
 * process waited for it.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "native.h"

#define AREA_LEAST (1UL << 26)
#define KEPT 8               /* as many as there are takers, usually */
#define STRICT '2'           /* vm.overcommit_memory: address space is accounted as if it were used */

static uint64_t kept[KEPT];  /* addresses; 0: none */
static pthread_mutex_t lock;

__attribute__((constructor)) static void prepare(void)
{
	make_lock(&lock);
}

/* Where there is `from` put `to` instead; false: there is none, or `to` has no place. */
static bool exchange(uint64_t *from, uint64_t to)
{
	bool found = false;

	pthread_mutex_lock(&lock);
	for (int i = 0; i < KEPT && !found; i++) {
		found = to ? !kept[i] : kept[i] != 0;
		if (found) {
			*from = kept[i];
			kept[i] = to;
		}
	}
	pthread_mutex_unlock(&lock);
	return found;
}

/* MAP_FAILED: there is none. */
static char *map(size_t *size)
{
	char *area = MAP_FAILED;

	/* less where limits, or vm.overcommit_memory = 2, leave no more */
	for (size_t some = AREA; area == MAP_FAILED && some >= AREA_LEAST; some /= 4) {
		area = mmap(NULL, some, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		*size = some;
	}
	return area;
}

/* Where its parts are. */
static void divide(struct taken *t)
{
	t->words = (struct bytes){ t->area.at + t->area.size / 8 * 7, 0 };
	t->shared = (struct bytes){ t->words.at - MAX_SHARED * sizeof(struct shared), 0 };
}

bool make_area(struct taken *t)
{
	uint64_t found;
	size_t size, half;
	char *area;

	if (exchange(&found, 0)) {
		t->area = (struct bytes){ found, AREA };
		divide(t);
		return true;
	}
	area = map(&size);
	if (area == MAP_FAILED) {
		t->area = (struct bytes){ 0, 0 };
		return because(t, "no address space: %s", strerror(errno));
	}
	t->area = (struct bytes){ (uintptr_t)area, size };
	divide(t);
	half = size / 2;
	/* in huge pages where many records are to come, but not for a small process */
	madvise(area + TEXT + CHUNK, half - TEXT - CHUNK, MADV_HUGEPAGE);
	madvise(area + half + CHUNK, t->shared.at - t->area.at - half - CHUNK, MADV_HUGEPAGE);
	return true;
}

static bool may_keep(const struct taken *t)
{
	char how[16];

	return t->area.size == AREA &&
	       small_file("/proc/sys/vm/overcommit_memory", how, sizeof(how)) && how[0] != STRICT;
}

void coreward_drop(struct taken *t)
{
	void *area = (void *)(uintptr_t)t->area.at;
	uint64_t nothing;

	if (t->area.size && (!may_keep(t) || madvise(area, t->area.size, MADV_DONTNEED) ||
			     !exchange(&nothing, t->area.at)))
		munmap(area, t->area.size);
	t->area.size = 0;
}
