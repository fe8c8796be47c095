/* SPDX-License-Identifier: Apache-2.0 */
/*
 * steady MIB THREADS RATE_MIB_PER_S SPARSE_GIB CPU
 *
 * A process that goes on, and notices what is done to it. MIB of touched memory, in pages of 4 KiB,
 * every fourth word random: it compresses about as a heap does. With SPARSE_GIB it is spread, 64 KiB
 * at a time, over a mapping of that size. THREADS in all: one works, on CPU alone; this one waits
 * for commands; the others are blocked in system calls for good, some of which a debugger makes
 * return EINTR.
 *
 * The worker reads the clock, over and over. The longest time between two readings is the longest
 * stall. It never sleeps by itself: if it did meanwhile, it was stopped, or had to wait in the
 * kernel; else somebody only had its CPU, another program or the host of a virtual machine.
 * With a rate it also writes to random pages, one at a time; what it missed while it stood it does
 * not make up for.
 *
 *     stdout  ready
 *     stdin   a newline: what was noticed since the last one?
 *     stdout  NS LOOPS PAGES_WRITTEN LONGEST_STALL_NS LONGEST_STOP_NS EINTRS
 *
 * Ends when its standard input does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define STRETCH (64u << 10)
#define NOTABLE_NS 5000 /* between two readings of the clock; some 40 if nothing happens */

/* What the worker noticed since it was asked last. */
struct window {
	int64_t ns;
	uint64_t loops;
	uint64_t written;
	int64_t stall_ns; /* for whatever reason */
	int64_t stop_ns;  /* in which it slept */
};

static struct window answer;
static atomic_bool asked;
static atomic_ulong interrupted;

static char *area;
static size_t stretches, apart; /* of touched memory, and bytes from one to the next */
static int64_t every_ns;	/* between two writes; 0: none */
static int worker_cpu;

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(2);
	}
}

static int64_t now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

static uint64_t random_word(void)
{
	static uint64_t state = 88172645463325252u; /* xorshift64 */

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void fill(size_t size, size_t spread)
{
	stretches = size / STRETCH;
	apart = spread / stretches & ~(size_t)(PAGE - 1);
	area = mmap(NULL, spread, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	check(area != MAP_FAILED, "mmap");
	/* the harder case: with huge pages there is less to copy and to scan */
	check(madvise(area, spread, MADV_NOHUGEPAGE) == 0, "madvise");
	for (size_t s = 0; s < stretches; s++) {
		uint64_t *words = (uint64_t *)(area + s * apart);

		for (size_t i = 0; i < STRETCH / sizeof *words; i++)
			words[i] = i % 4 ? s << 4 | i >> 9 | 1 : random_word();
	}
}

static void write_somewhere(void)
{
	uint64_t where = random_word();
	char *stretch = area + where % stretches * apart;

	*(volatile uint64_t *)(stretch + (where >> 32) % (STRETCH / PAGE) * PAGE) = where;
}

/* Whether the worker slept since the last call. */
static int has_slept(void)
{
	static long known;
	struct rusage used;
	long before = known;

	getrusage(RUSAGE_THREAD, &used);
	known = used.ru_nvcsw;
	return known != before;
}

static void notice(struct window *seen, int64_t gap)
{
	if (gap > seen->stall_ns)
		seen->stall_ns = gap;
	if (has_slept() && gap > seen->stop_ns)
		seen->stop_ns = gap;
}

static void *work(void *unused)
{
	struct window seen = { 0 };
	int64_t begun = now_ns(), last = begun, due = begun;
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(worker_cpu, &one);
	check(sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity");
	prctl(PR_SET_NAME, "worker");
	has_slept();
	for (;;) {
		int64_t now = now_ns();

		if (now - last > NOTABLE_NS) {
			notice(&seen, now - last);
			now = now_ns();
		}
		last = now;
		seen.loops++;
		if (every_ns && now >= due) {
			write_somewhere();
			seen.written++;
			due += every_ns;
			if (now > due + 10 * every_ns)
				due = now;
		}
		if (atomic_load_explicit(&asked, memory_order_acquire)) {
			seen.ns = now - begun;
			answer = seen;
			seen = (struct window){ 0 };
			begun = now;
			atomic_store_explicit(&asked, 0, memory_order_release);
		}
	}
	return unused;
}

/* Calls that never come back by themselves. Of these epoll_wait, sigwaitinfo and the recv with a
 * timeout return EINTR when their thread was stopped; the others are restarted by the kernel. */
static void *blocked(void *number)
{
	static uint32_t word;
	struct timeval long_time = { 100000, 0 };
	struct timespec as_long = { 100000, 0 };
	struct epoll_event event = { .events = EPOLLIN };
	int pipe_ends[2], sockets[2], waiter = epoll_create1(0);
	struct pollfd polled;
	sigset_t usr1;
	char byte;

	check(pipe(pipe_ends) == 0 && waiter >= 0, "pipe, epoll_create1");
	check(epoll_ctl(waiter, EPOLL_CTL_ADD, pipe_ends[0], &event) == 0, "epoll_ctl");
	check(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0, "socketpair");
	setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &long_time, sizeof long_time);
	polled = (struct pollfd){ .fd = pipe_ends[0], .events = POLLIN };
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	for (;;) {
		long result;

		switch ((uintptr_t)number % 8) {
		case 0:
			result = epoll_wait(waiter, &event, 1, -1);
			break;
		case 1:
			result = syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL);
			break;
		case 2:
			result = recv(sockets[0], &byte, 1, 0);
			break;
		case 3:
			result = poll(&polled, 1, -1);
			break;
		case 4:
			result = sigwaitinfo(&usr1, NULL);
			break;
		case 5:
			result = nanosleep(&as_long, NULL);
			break;
		case 6:
			result = epoll_wait(waiter, &event, 1, 100000000);
			break;
		default:
			result = read(pipe_ends[0], &byte, 1);
		}
		check(result == -1 && errno == EINTR, "a call that should never return");
		atomic_fetch_add(&interrupted, 1);
	}
	return NULL;
}

static void start(void *(*what)(void *), uintptr_t number)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 256 << 10);
	check(pthread_create(&thread, &attributes, what, (void *)number) == 0, "pthread_create");
}

static void leave_worker_alone(void)
{
	cpu_set_t others;

	check(sched_getaffinity(0, sizeof others, &others) == 0, "sched_getaffinity");
	CPU_CLR(worker_cpu, &others);
	check(sched_setaffinity(0, sizeof others, &others) == 0, "sched_setaffinity");
}

int main(int argc, char **argv)
{
	unsigned long count, rate;
	size_t size, spread;
	sigset_t usr1;
	char byte;

	if (argc != 6) {
		fprintf(stderr, "usage: steady MIB THREADS RATE_MIB_PER_S SPARSE_GIB CPU\n");
		return 2;
	}
	size = strtoul(argv[1], NULL, 10) << 20;
	count = strtoul(argv[2], NULL, 10);
	rate = strtoul(argv[3], NULL, 10);
	spread = strtoul(argv[4], NULL, 10) << 30;
	worker_cpu = atoi(argv[5]);
	every_ns = rate ? INT64_C(1000000000) / (int64_t)((rate << 20) / PAGE) : 0;
	fill(size, spread ? spread : size);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, NULL);
	for (unsigned long i = 0; i + 2 < count; i++)
		start(blocked, i);
	start(work, 0);
	leave_worker_alone();
	printf("ready\n");
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) == 1) {
		atomic_store_explicit(&asked, 1, memory_order_release);
		while (atomic_load_explicit(&asked, memory_order_acquire))
			sched_yield();
		printf("%lld %llu %llu %lld %lld %lu\n", (long long)answer.ns,
		       (unsigned long long)answer.loops, (unsigned long long)answer.written,
		       (long long)answer.stall_ns, (long long)answer.stop_ns,
		       atomic_exchange(&interrupted, 0));
		fflush(stdout);
	}
	return 0;
}
