// A process that never rests, and that checks all the while that nothing was changed behind its back.
//
//     live_busy FILE
//
// FILE becomes a struct counters, shared and up to date at any time: each counter but the last two
// rises as long as its threads are well. Threads are created and joined all the time, compute with
// general and vector registers, pass bytes in turns, wait for epoll with a timeout, and block.
// SIGRTMIN is counted, by whichever thread gets it. It ends when its standard input does.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static struct counters {
	uint64_t births;   // threads created and joined
	uint64_t sums;     // computations that came out right
	uint64_t turns;    // bytes passed in turns
	uint64_t timeouts; // of epoll_wait
	uint64_t signals;  // SIGRTMIN
	uint64_t eintr;    // system calls that failed with EINTR
	uint64_t wrong;    // anything that cannot be
} *counters;

#define COUNT(WHAT) __atomic_add_fetch(&counters->WHAT, 1, __ATOMIC_SEQ_CST)

static void on_signal(int number)
{
	(void)number;
	COUNT(signals);
}

static void *child(void *argument) { return (char *)argument + 1; }

static void *create(void *argument)
{
	for (;;) {
		pthread_t thread;
		void *result = NULL;
		if (pthread_create(&thread, NULL, child, argument) || pthread_join(thread, &result) ||
		    result != (char *)argument + 1)
			COUNT(wrong);
		else
			COUNT(births);
	}
	return NULL;
}

// The same number twice: in general registers, and in vector registers.
static void *compute(void *argument)
{
	(void)argument;
	setpriority(PRIO_PROCESS, 0, 19);
	for (;;) {
		uint64_t whole = 0;
		double real = 0;
		__asm__ volatile("mov $500000, %%ecx\n"
				 "mov $1, %%eax\n"
				 "cvtsi2sd %%eax, %%xmm9\n"
				 "1: add %%rax, %0\n"
				 "addsd %%xmm9, %1\n"
				 "dec %%ecx\n"
				 "jnz 1b\n"
				 : "+r"(whole), "+x"(real)
				 :
				 : "rax", "rcx", "xmm9", "cc");
		if (whole != 500000 || real != 500000)
			COUNT(wrong);
		else
			COUNT(sums);
	}
	return NULL;
}

struct ends { int in, out; unsigned char first; };

static void *take_turns(void *argument)
{
	struct ends *ends = argument;
	unsigned char expected = ends->first, byte;
	for (;;) {
		long n = read(ends->in, &byte, 1);
		if (n < 0 && errno == EINTR) {
			COUNT(eintr);
			continue;
		}
		if (n != 1 || byte != expected)
			COUNT(wrong);
		expected += 2;
		byte++;
		COUNT(turns);
		while (write(ends->out, &byte, 1) != 1)
			COUNT(eintr);
	}
	return NULL;
}

static void *wait_briefly(void *argument)
{
	struct epoll_event event;
	int e = epoll_create1(0);
	(void)argument;
	for (;;) {
		int n = epoll_wait(e, &event, 1, 1);
		if (n == 0)
			COUNT(timeouts);
		else if (n < 0 && errno == EINTR)
			COUNT(eintr);
		else
			COUNT(wrong);
	}
	return NULL;
}

static void *wait_forever(void *argument)
{
	struct epoll_event event;
	int e = epoll_create1(0);
	(void)argument;
	for (;;) {
		if (epoll_wait(e, &event, 1, -1) < 0 && errno == EINTR)
			COUNT(eintr);
		else
			COUNT(wrong);
	}
	return NULL;
}

static void start(void *(*run)(void *), void *argument, int handles)
{
	pthread_t thread;
	sigset_t all;
	sigfillset(&all);
	if (!handles)
		pthread_sigmask(SIG_BLOCK, &all, NULL);
	if (pthread_create(&thread, NULL, run, argument))
		exit(3);
	pthread_sigmask(SIG_UNBLOCK, &all, NULL);
}

int main(int argc, char **argv)
{
	static struct ends ends[2];
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	int file = open(argv[argc - 1], O_RDWR | O_CREAT | O_TRUNC, 0600), pipes[2][2];
	char byte = 0;

	ftruncate(file, sizeof *counters);
	counters = mmap(0, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	sigaction(SIGRTMIN, &action, NULL);
	pipe(pipes[0]);
	pipe(pipes[1]);
	ends[0] = (struct ends){pipes[0][0], pipes[1][1], 0};
	ends[1] = (struct ends){pipes[1][0], pipes[0][1], 1};
	// those that handle signals do not count EINTR, which a signal brings by right
	for (int i = 0; i < 2; i++) {
		start(create, &counters, 1);
		start(compute, NULL, 1);
		start(take_turns, &ends[i], 0);
		start(wait_briefly, NULL, 0);
	}
	for (int i = 0; i < 8; i++)
		start(wait_forever, NULL, 0);
	write(pipes[0][1], &byte, 1);
	printf("ready\n");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
