/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loops signals|forks|calls COUNT: nanoseconds for one of COUNT handled signals, for one of COUNT
 * times fork, exit and wait, or for one of COUNT times getppid(2):
 * of these in the fastest of 100 parts, in which nobody else had the CPU.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t handled;

static void on_signal(int number)
{
	(void)number;
	handled++;
}

static int64_t now_ns(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

static void signals(long count)
{
	pid_t self = getpid();

	signal(SIGUSR1, on_signal);
	for (long i = 0; i < count; i++)
		kill(self, SIGUSR1);
	if (handled != count)
		exit(1);
}

static void forks(long count)
{
	for (long i = 0; i < count; i++) {
		int status;
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			exit(1);
	}
}

static double calls(long count)
{
	long part = count / 100;
	double least = 1e18;

	for (int round = 0; round < 100; round++) {
		int64_t begun = now_ns();
		double took;

		for (long i = 0; i < part; i++)
			syscall(SYS_getppid);
		took = (double)(now_ns() - begun) / (double)part;
		if (took < least)
			least = took;
	}
	return least;
}

int main(int argc, char **argv)
{
	long count = argc == 3 ? atol(argv[2]) : 0;
	int64_t begun;

	if (count <= 0)
		return 2;
	begun = now_ns();
	if (strcmp(argv[1], "signals") == 0)
		signals(count);
	else if (strcmp(argv[1], "forks") == 0)
		forks(count);
	else if (strcmp(argv[1], "calls") == 0 && count >= 100)
		return printf("%.1f\n", calls(count)) < 0;
	else
		return 2;
	printf("%.1f\n", (double)(now_ns() - begun) / (double)count);
	return 0;
}
