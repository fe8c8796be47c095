/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is armed in tests: `armed MIB THREADS ENDING`. Its memory has a pattern that its core must have,
 * each thread waits in a function of its own depth, and it ends as it is told when a line comes.
 *
 * wait: it is killed; exit: exit(3); touch: it takes memory until it is killed for it; exec: another
 * program, which is killed; fork: children without end.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096

static pthread_barrier_t all;
uint64_t *pattern; /* gdb finds it by this name */

static __attribute__((noinline)) void rest(void)
{
	for (;;)
		pause();
}

static __attribute__((noinline)) int deep(int levels)
{
	volatile int here = levels;

	if (levels)
		return deep(levels - 1) + here;
	pthread_barrier_wait(&all);
	rest();
	return here;
}

static void *wait_deep(void *levels)
{
	return (void *)(intptr_t)deep((int)(intptr_t)levels);
}

static void touch(void)
{
	for (;;) {
		char *more = malloc(1 << 20);

		if (more)
			memset(more, 1, 1 << 20);
	}
}

static void fork_on(void)
{
	for (;;) {
		pid_t child = fork();

		if (!child)
			_exit(0);
		if (child > 0)
			waitpid(child, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	size_t size = (argc > 1 ? strtoul(argv[1], NULL, 10) : 1) << 20;
	int threads = argc > 2 ? atoi(argv[2]) : 0;
	const char *ending = argc > 3 ? argv[3] : "wait";
	pthread_attr_t small;
	pthread_t thread;

	pattern = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pattern == MAP_FAILED)
		return 1;
	for (size_t i = 0; i < size / sizeof(*pattern); i++)
		pattern[i] = i * 0x9E3779B97F4A7C15u + 1;
	pthread_barrier_init(&all, NULL, (unsigned)threads + 1);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 << 10);
	for (intptr_t i = 0; i < threads; i++)
		if (pthread_create(&thread, &small, wait_deep, (void *)(1 + i % 8)))
			return 1;
	pthread_barrier_wait(&all);
	printf("at %p %zu\nready\n", (void *)pattern, size);
	fflush(stdout);
	if (getchar() == EOF)
		return 0;
	if (!strcmp(ending, "exit"))
		exit(3);
	if (!strcmp(ending, "touch"))
		touch();
	if (!strcmp(ending, "fork"))
		fork_on();
	if (!strcmp(ending, "exec"))
		execl("/proc/self/exe", "armed", "1", "0", "wait", NULL);
	rest();
}
