/* SPDX-License-Identifier: Apache-2.0 */
/*
 * traced WHAT [COUNT [THREADS]]: calls, threads, forks and execs for a tracer to see.
 *
 *   storm    COUNT times getppid(2) in each of THREADS threads
 *   threads  COUNT threads that wait; they end with the process, when a line comes
 *   churn    threads that make others and end, until a line comes
 *   forks    COUNT generations of processes, each a child of the one before
 *   exec     another thread than the first one executes true(1)
 *   text     writes COUNT bytes to /dev/null, then opens a file whose name has control characters
 *   sleep    waits in read(2) for a line that does not come
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "victim.h"

static long count;
static volatile int over;

static void *storm(void *unused)
{
	(void)unused;
	for (long i = 0; i < count; i++)
		syscall(SYS_getppid);
	return 0;
}

static void *idle(void *unused)
{
	(void)unused;
	for (;;)
		pause();
	return 0;
}

static pthread_t start(void *(*function)(void *), int detached)
{
	pthread_attr_t small;
	pthread_t thread;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 16384);
	if (detached)
		pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &small, function, 0))
		exit(1);
	return thread;
}

/* Each makes its successor and ends. */
static void *churn(void *unused)
{
	(void)unused;
	if (!over)
		start(churn, 1);
	return 0;
}

static void *execute(void *unused)
{
	(void)unused;
	execl("/bin/true", "true", "of another thread", (char *)0);
	exit(1);
}

static void generations(long left)
{
	pid_t child;

	if (!left)
		return;
	child = fork();
	if (child == 0) {
		generations(left - 1);
		_exit(0);
	}
	waitpid(child, 0, 0);
}

static void text(void)
{
	char *bytes = malloc(count);
	int file = open("/dev/null", O_WRONLY);

	memset(bytes, 'x', count);
	write(file, bytes, count);
	open("/\x1b]0;title\x07\n+++ exited with 0 +++\n", O_RDONLY);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	long threads = argc > 3 ? atol(argv[3]) : 0;
	pthread_t made[64];

	count = argc > 2 ? atol(argv[2]) : 0;
	if (!strcmp(what, "threads"))
		for (long i = 0; i < count; i++)
			start(idle, 1);
	if (!strcmp(what, "churn"))
		for (int i = 0; i < 8; i++)
			start(churn, 1);
	ready(argc, argv);
	over = 1;
	if (!strcmp(what, "storm") && !threads)
		storm(0);
	for (long i = 0; i < threads; i++)
		made[i] = start(storm, 0);
	for (long i = 0; i < threads; i++)
		pthread_join(made[i], 0);
	if (!strcmp(what, "forks"))
		generations(count);
	if (!strcmp(what, "exec"))
		pthread_join(start(execute, 0), 0);
	if (!strcmp(what, "text"))
		text();
	if (!strcmp(what, "sleep"))
		read(0, &over, 1);
	_exit(3);
}
