/* SPDX-License-Identifier: Apache-2.0 */
/*
 * series COUNT SECONDS
 *
 * COUNT crashes, one after the other, spread evenly over SECONDS or as fast as they go. The parent
 * tells which process it was and how long it waited for it, a line for each:
 *
 *     PID START_TICKS BEGUN_NS WAIT_NS STATUS
 *
 * START_TICKS as in /proc/PID/stat, BEGUN_NS of CLOCK_MONOTONIC. The time runs from the byte that
 * lets the process crash to the return of waitpid(2).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)
#define BEFORE_START 20 /* fields of /proc/PID/stat from the state on; field 22 is the start */

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static int64_t now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * SECOND + at.tv_nsec;
}

static void sleep_until(int64_t at_ns)
{
	struct timespec at = { at_ns / SECOND, at_ns % SECOND };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL))
		;
}

static unsigned long long start_of(pid_t pid)
{
	unsigned long long ticks = 0;
	char name[64], stat[1024];
	const char *field;
	FILE *file;

	snprintf(name, sizeof(name), "/proc/%d/stat", pid);
	file = fopen(name, "r");
	check(file && fgets(stat, sizeof(stat), file), name);
	fclose(file);
	field = strrchr(stat, ')');
	for (int i = 0; field && i < BEFORE_START; i++)
		field = strchr(field + 1, ' ');
	check(field && sscanf(field, "%llu", &ticks) == 1, name);
	return ticks;
}

static void crash_one(void)
{
	unsigned long long start;
	int64_t begun, ended;
	int go[2], status;
	char byte = 0;
	pid_t pid;

	check(!pipe(go), "pipe");
	pid = fork();
	check(pid >= 0, "fork");
	if (!pid) {
		if (read(go[0], &byte, 1) == 1)
			*(volatile int *)0 = 1;
		_exit(1);
	}
	start = start_of(pid);
	begun = now_ns();
	check(write(go[1], &byte, 1) == 1, "write");
	check(waitpid(pid, &status, 0) == pid, "waitpid");
	ended = now_ns();
	close(go[0]);
	close(go[1]);
	printf("%d %llu %lld %lld %d\n", pid, start, (long long)begun, (long long)(ended - begun), status);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	long count = argc > 2 ? atol(argv[1]) : 0;
	int64_t begun = now_ns(), each;

	if (count <= 0)
		return 2;
	each = atol(argv[2]) * SECOND / count;
	for (long i = 0; i < count; i++) {
		sleep_until(begun + i * each);
		crash_one();
	}
	return 0;
}
