/*
 * Crash loops: so many parents, each of which lets one child after the other crash.
 *
 *     storm LOOPS SECONDS
 *
 * Prints a line: deaths, the longest and the mean wait for one in microseconds, from fork(2) to the
 * return of waitpid(2).
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct account {
	long deaths, worst_us, sum_us;
};

static long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static void loop(long until, int out)
{
	struct account mine = {0};

	for (long begun = now_us(); begun < until; begun = now_us()) {
		pid_t child = fork();
		long took;

		if (!child)
			*(volatile int *)0 = 1;
		waitpid(child, 0, 0);
		took = now_us() - begun;
		mine.deaths++;
		mine.sum_us += took;
		if (took > mine.worst_us)
			mine.worst_us = took;
	}
	if (write(out, &mine, sizeof(mine)) != sizeof(mine))
		abort();
	_exit(0);
}

int main(int argc, char **argv)
{
	long until, loops = argc > 2 ? atol(argv[1]) : 0;
	struct account all = {0}, one;
	int ends[2];

	if (!loops || pipe(ends))
		return 2;
	until = now_us() + atol(argv[2]) * 1000000L;
	for (int i = 0; i < loops; i++)
		if (!fork())
			loop(until, ends[1]);
	close(ends[1]);
	while (read(ends[0], &one, sizeof(one)) == sizeof(one)) {
		all.deaths += one.deaths;
		all.sum_us += one.sum_us;
		if (one.worst_us > all.worst_us)
			all.worst_us = one.worst_us;
	}
	printf("%ld %ld %ld\n", all.deaths, all.worst_us, all.deaths ? all.sum_us / all.deaths : 0);
	return 0;
}
