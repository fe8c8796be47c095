/* SPDX-License-Identifier: Apache-2.0 */
/*
 * living: what a process does while it may be armed. Says "ready", and then answers each line
 * "LOOP COUNT" with the nanoseconds of CPU time, its own and its children's, of one of COUNT turns:
 * faults (first touch of a page), maps (mmap and munmap of a page), forks (fork, exit and wait), execs
 * (posix_spawn of /bin/true and wait), threads (create, exit and join).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096L

/* Of CPUs: other processes of a busy machine do not count. */
static int64_t now_ns(void)
{
	struct timespec at;
	struct rusage children;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
	getrusage(RUSAGE_CHILDREN, &children);
	return (at.tv_sec + children.ru_utime.tv_sec + children.ru_stime.tv_sec) * INT64_C(1000000000) +
	       at.tv_nsec + (children.ru_utime.tv_usec + children.ru_stime.tv_usec) * 1000;
}

static void wait_for(pid_t pid)
{
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		exit(1);
}

static void faults(long count)
{
	char *area = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED || madvise(area, count * PAGE, MADV_NOHUGEPAGE))
		exit(1);
	for (long i = 0; i < count; i++)
		area[i * PAGE] = 1;
	munmap(area, count * PAGE);
}

static void maps(long count)
{
	for (long i = 0; i < count; i++) {
		char *page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (page == MAP_FAILED || munmap(page, PAGE))
			exit(1);
	}
}

static void forks(long count)
{
	for (long i = 0; i < count; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		wait_for(pid);
	}
}

static void execs(long count)
{
	char *argv[] = { "true", NULL }, *none[] = { NULL };

	for (long i = 0; i < count; i++) {
		pid_t pid;

		if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, none))
			exit(1);
		wait_for(pid);
	}
}

static void *end(void *unused)
{
	return unused;
}

static void threads(long count)
{
	for (long i = 0; i < count; i++) {
		pthread_t one;

		if (pthread_create(&one, NULL, end, NULL) || pthread_join(one, NULL))
			exit(1);
	}
}

static const struct {
	const char *name;
	void (*turns)(long count);
} loops[] = {
	{ "faults", faults }, { "maps", maps }, { "forks", forks }, { "execs", execs }, { "threads", threads },
};

int main(void)
{
	char name[16];
	long count;

	printf("ready\n");
	fflush(stdout);
	while (scanf("%15s %ld", name, &count) == 2)
		for (size_t i = 0; i < sizeof(loops) / sizeof(*loops); i++)
			if (!strcmp(name, loops[i].name)) {
				int64_t begun = now_ns();

				loops[i].turns(count);
				printf("%.1f\n", (double)(now_ns() - begun) / count);
				fflush(stdout);
			}
	return 0;
}
