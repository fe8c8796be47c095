/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coreward-copy copies the memory of a process that waits for it, and ends. See copier.h.
 *
 * It is a process of its own, for a page can keep whoever reads it waiting for as long as somebody
 * likes (userfaultfd, FUSE, a lock that a sibling holds). Its threads that such a page holds are
 * left behind when the time is over; what they bring later is in no table. It is a small program
 * without the interpreter, for the process waits: it starts in a millisecond.
 *
 * What costs is fresh memory, not the read. The area should have huge pages, and two threads fill it.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "pieces.h"

#define THREADS 2             /* more are no faster on any machine that was measured */
#define QUIET_NS 250000000L   /* for all that is not in memory */
#define SECOND_NS 1000000000L

static struct order order;
static char *area;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below */
static pthread_cond_t ended;
static bool over; /* what is read from now on comes too late */
static struct list present = { .most = 4UL << 20 }, absent = { .most = 1UL << 20 };

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SECOND_NS + t.tv_nsec;
}

/* As a helper of the agent: it dies with it, and rather than any service. */
static void become_helper(void)
{
	struct rlimit none = { 0, 0 };
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 0);
	setrlimit(RLIMIT_CORE, &none);
	if (fd >= 0 && write(fd, "900", 3) == 3)
		close(fd);
}

/* Whether the process has ended, and its number may be another's. */
static bool has_ended(void)
{
	struct pollfd end = { .fd = order.pidfd, .events = POLLIN };

	return poll(&end, 1, 0) != 0;
}

/* Reads a piece from `at` on; whole pages, 0 if there are none. */
static uint64_t read_some(const struct source *p, uint64_t at)
{
	char *to = area + p->piece.offset + (at - p->piece.start);
	size_t size = p->piece.end - at;
	ssize_t got = 0;

	if (p->fd >= 0) {
		got = pread(p->fd, to, size, p->from + (off_t)(at - p->piece.start));
		return got > 0 ? ((uint64_t)got + PAGE - 1) & -PAGE : 0; /* behind its end are zeros */
	}
	if (order.pidfd >= 0) { /* a third faster than /proc/PID/mem */
		struct iovec ours = { to, size }, theirs = { (void *)at, size };

		got = process_vm_readv(order.pid, &ours, 1, &theirs, 1, 0);
		if (has_ended())
			got = 0;
	}
	if (got < (ssize_t)PAGE) /* what the process itself could not read */
		got = pread(order.mem, to, size, (off_t)at);
	return got > 0 ? (uint64_t)got & -PAGE : 0;
}

/* Read one piece up to its first page that cannot be read. What is behind that is a new piece. */
static void read_piece(struct list *list, size_t index)
{
	struct source p = list->sources[index];
	uint64_t at = p.piece.start, got = 1, next;

	while (at < p.piece.end && got && !__atomic_load_n(&over, __ATOMIC_RELAXED)) {
		got = read_some(&p, at);
		at += got;
	}
	next = at + PAGE;
	pthread_mutex_lock(&lock);
	if (!over) {
		list->sources[index].piece.got = at - p.piece.start;
		if (next < p.piece.end && append(list, &p, next))
			list->sources[index].piece.end = next;
	}
	pthread_mutex_unlock(&lock);
}

/* The pieces of the first part; they come first. */
static void read_first(const struct part *first)
{
	size_t count = present.count;

	while (present.next < count && present.sources[present.next].piece.offset != NO_ROOM &&
	       present.sources[present.next].piece.start >= first->start &&
	       present.sources[present.next].piece.start < first->end)
		read_piece(&present, present.next++);
}

static void *work(void *of)
{
	struct list *list = of;

	pthread_mutex_lock(&lock);
	while (!over && list->next < list->count) {
		size_t index = list->next++;

		if (list->sources[index].piece.offset == NO_ROOM)
			continue;
		pthread_mutex_unlock(&lock);
		read_piece(list, index);
		pthread_mutex_lock(&lock);
	}
	list->busy--;
	pthread_cond_signal(&ended);
	pthread_mutex_unlock(&lock);
	return NULL;
}

static void start(struct list *list, int threads)
{
	pthread_t thread;

	for (int i = 0; i < threads; i++) {
		list->busy++;
		if (pthread_create(&thread, NULL, work, list))
			list->busy--;
	}
}

static void wait_for(struct list *list, int64_t until_ns)
{
	struct timespec until = { until_ns / SECOND_NS, until_ns % SECOND_NS };

	while (list->busy && pthread_cond_timedwait(&ended, &lock, &until) != ETIMEDOUT)
		;
}

/* Read all pieces until the deadline; what is not in memory has little time. */
static void copy(int64_t until_ns)
{
	pthread_condattr_t monotonic;
	int64_t quiet_ns;

	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&ended, &monotonic);
	pthread_mutex_lock(&lock);
	over = now_ns() >= until_ns;
	start(&present, present.count > 1 ? THREADS : 1);
	start(&absent, absent.count ? 1 : 0);
	wait_for(&present, until_ns);
	quiet_ns = now_ns() + QUIET_NS;
	wait_for(&absent, quiet_ns < until_ns ? quiet_ns : until_ns);
	__atomic_store_n(&over, true, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&lock);
}

/* The order, and the parts behind it; NULL with errno. */
static struct part *read_order(void)
{
	off_t size = lseek(STDIN_FILENO, 0, SEEK_END);
	char *file = size < (off_t)sizeof(order) ?
			     MAP_FAILED :
			     mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, STDIN_FILENO, 0);

	if (file == MAP_FAILED)
		return NULL;
	memcpy(&order, file, sizeof(order));
	order.room &= -PAGE;
	if (order.parts > ((size_t)size - sizeof(order)) / sizeof(struct part)) {
		errno = EINVAL;
		return NULL;
	}
	return (struct part *)(file + sizeof(order));
}

/* Make the area as large as it gets, with its table; false with errno. */
static bool make_area(uint64_t size)
{
	if (ftruncate(order.area, (off_t)size))
		return false;
	area = size ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, order.area, 0) : NULL;
	return area != MAP_FAILED;
}

static void run(struct answer *answer)
{
	const struct part *parts = read_order();

	if (!parts || !find_pieces(&order, parts, &present, &absent)) {
		answer->error = errno ? errno : EIO;
		return;
	}
	answer->size = present.size;
	if (order.whole && present.size > order.room)
		return;
	place(&present, 0, order.room);
	place(&absent, present.placed, order.room);
	answer->table = absent.placed;
	if (!make_area(absent.placed)) {
		answer->error = errno;
		return;
	}
	if (order.first && order.parts)
		read_first(parts);
	copy(order.until_ns);
	answer->pieces = present.count + absent.count;
	if (!write_table(&present, order.area, answer->table) ||
	    !write_table(&absent, order.area, answer->table + present.count * sizeof(struct piece)))
		answer->error = errno ? errno : EIO;
}

int main(void)
{
	struct answer answer = { 0, 0, 0, 0 };

	become_helper();
	run(&answer);
	/* a thread may hang in the kernel: nobody waits for the end of this process */
	_exit(write(STDOUT_FILENO, &answer, sizeof(answer)) == sizeof(answer) ? 0 : 1);
}
