/* SPDX-License-Identifier: Apache-2.0 */
/* Everything of a held process that goes with it, and its release if nothing speaks against it. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "native.h"

#define MANY 500             /* threads: their mappings are worth a thread of ours */
#define EXIT_MS 50           /* for the end of a process that was let go */

/* One at a time: each iterator has one scratch page per CPU. */
static pthread_mutex_t listing_threads = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t listing_mappings = PTHREAD_MUTEX_INITIALIZER;

/* Files without a name behind shared mappings: they tell which pages exist at all. */
static void open_shared(struct taken *t)
{
	struct shared *found = (struct shared *)(uintptr_t)t->shared.at;
	uint64_t at = t->mappings.at, end = at + t->mappings.size;
	size_t count = 0;

	while (at + sizeof(struct cw_mapping) <= end && count < MAX_SHARED) {
		struct cw_mapping m;

		memcpy(&m, (const void *)(uintptr_t)at, sizeof(m)); /* paths make them unaligned */
		if (m.flags & CW_MAPPING_FILE && m.vm_flags & 8 /* VM_SHARED */ && !m.nlink) {
			char name[64];
			int fd;

			snprintf(name, sizeof(name), "map_files/%llx-%llx",
				 (unsigned long long)m.start, (unsigned long long)m.end);
			fd = openat(t->fds[DIR_FD], name, O_RDONLY | O_CLOEXEC);
			if (fd >= 0)
				found[count++] = (struct shared){ m.start, fd, 0 };
		}
		if (m.size < sizeof(m))
			break;
		at += m.size;
	}
	t->shared.size = count * sizeof(*found);
}

/* From now on it is known that this process was taken, whoever sees its end first. */
static bool enter_hand(struct orders *o, struct taken *t)
{
	for (int i = 0; i < HANDS; i++) {
		int32_t nobody = 0;

		if (atomic_compare_exchange_strong(&o->in_hand[i].pid, &nobody, -1)) {
			o->in_hand[i].start_ticks = t->start_ticks;
			o->in_hand[i].pid = t->pid;
			return true;
		}
	}
	return false;
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

	pthread_mutex_lock(&listing_mappings);
	t->mappings = iterate(((struct job *)of)->orders->mappings_program, t->tid, true,
			      (char *)(uintptr_t)to, t->shared.at - to);
	pthread_mutex_unlock(&listing_mappings);
	open_shared(t);
	return NULL;
}

static int64_t thread_count(struct taken *t)
{
	char text[8192];

	return field(text_of(t, STATUS, text, sizeof(text)), "Threads");
}

/* Address space for all that is to be found: memory only where it is written. */
static bool make_area(struct taken *t)
{
	uint64_t half;
	char *area = MAP_FAILED;

	/* less where limits, or vm.overcommit_memory = 2, leave no more */
	for (size_t size = AREA; area == MAP_FAILED && size >= AREA_LEAST; size /= 4) {
		area = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		t->area = (struct bytes){ (uintptr_t)area, size };
	}
	if (area == MAP_FAILED) {
		t->area = (struct bytes){ 0, 0 };
		return because(t, "no address space: %s", strerror(errno));
	}
	half = t->area.size / 2;
	t->words = (struct bytes){ t->area.at + t->area.size / 8 * 7, 0 };
	t->shared = (struct bytes){ t->words.at - MAX_SHARED * sizeof(struct shared), 0 };
	/* in huge pages where many records are to come, but not for a small process */
	madvise(area + TEXT + CHUNK, half - TEXT - CHUNK, MADV_HUGEPAGE);
	madvise(area + half + CHUNK, t->shared.at - t->area.at - half - CHUNK, MADV_HUGEPAGE);
	return true;
}

/* Threads and mappings, by BPF, and what their exit would change. */
static bool list(struct orders *o, struct taken *t)
{
	char *area = (char *)(uintptr_t)t->area.at;
	struct job job = { o, t };
	pthread_t beside;
	bool many = thread_count(t) >= MANY && !pthread_create(&beside, NULL, list_mappings, &job);

	pthread_mutex_lock(&listing_threads);
	t->threads = iterate(o->threads_program, t->pid, false, area + TEXT,
			     t->area.size / 2 - TEXT);
	pthread_mutex_unlock(&listing_threads);
	if (many)
		pthread_join(beside, NULL);
	else
		list_mappings(&job);
	if (!t->threads.size || !t->mappings.size)
		return because(t, "its %s cannot be listed", t->threads.size ? "mappings" : "threads");
	keep_words(t);
	return true;
}

static bool collect(struct orders *o, struct taken *t)
{
	bool bpf = o->threads_program >= 0;

	if (!make_area(t) || !open_process(t, !bpf) || (bpf && !list(o, t)))
		return false;
	t->address = readable(t);
	return true;
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

/* Gather all of a held process that goes with it, and release it if nothing speaks against that. */
void gather(struct orders *o, struct taken *t)
{
	t->gathered = collect(o, t);
	if (!t->gathered) {
		abandon(t);
		return;
	}
	/* its core is wanted if it is streamed */
	if (!o->instant || o->stream || !admit(o, t))
		return;
	if (!pin_memory(o, t) || !enter_hand(o, t)) {
		coreward_entered(o, t->private_size);
		return;
	}
	t->released_ns = now_ns();
	close(t->hold);
	t->hold = -1;
	/* its threads need the CPU that Python would be on now */
	poll(&(struct pollfd){ t->pidfd, POLLIN, 0 }, 1, EXIT_MS);
}

void coreward_drop(struct taken *t)
{
	if (t->area.size)
		munmap((void *)(uintptr_t)t->area.at, t->area.size);
	t->area.size = 0;
}
