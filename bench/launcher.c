/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launcher CORE_LIMIT PROGRAM [ARGUMENT...]
 *
 * Starts PROGRAM as a supervisor would, and times its death: from the byte that makes it crash to
 * the return of wait4(2). It waits on events only. CORE_LIMIT: RLIMIT_CORE in bytes, or -1.
 *
 *     stdout  ready PID
 *     stdin   one byte: now
 *     stdout  done START_REALTIME_NS WAIT_NS STATUS CPU_US
 *
 * CPU_US is what the dying process used in the kernel and outside, between the two.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now_ns(clockid_t clock)
{
	struct timespec at;

	if (clock_gettime(clock, &at))
		fail("clock_gettime");
	return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

static int64_t micros(struct timeval t)
{
	return t.tv_sec * INT64_C(1000000) + t.tv_usec;
}

static pid_t start(long core_limit, char **command, int *go, int *said)
{
	int to[2], from[2];
	pid_t pid;

	if (pipe(to) || pipe(from))
		fail("pipe");
	pid = fork();
	if (pid < 0)
		fail("fork");
	if (pid == 0) {
		struct rlimit limit = { (rlim_t)core_limit, (rlim_t)core_limit };

		if (setrlimit(RLIMIT_CORE, &limit))
			fail("setrlimit");
		dup2(to[0], STDIN_FILENO);
		dup2(from[1], STDOUT_FILENO);
		for (int i = 0; i < 2; i++) {
			close(to[i]);
			close(from[i]);
		}
		execv(command[0], command);
		fail(command[0]);
	}
	close(to[0]);
	close(from[1]);
	*go = to[1];
	*said = from[0];
	return pid;
}

static void until_ready(int said, const char *name)
{
	static const char wanted[] = "ready\n";
	char seen[sizeof(wanted)] = "";
	size_t have = 0;

	while (have < sizeof(wanted) - 1) {
		ssize_t got = read(said, seen + have, sizeof(wanted) - 1 - have);

		if (got <= 0)
			fail(name);
		have += (size_t)got;
	}
	if (strcmp(seen, wanted)) {
		fprintf(stderr, "%s: not ready, but \"%s\"\n", name, seen);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct rusage used;
	int64_t begun, began_realtime, ended, cpu_before;
	clockid_t cpu;
	int go, said, status;
	char now;
	pid_t pid;

	if (argc < 3) {
		fprintf(stderr, "usage: launcher CORE_LIMIT PROGRAM [ARGUMENT...]\n");
		return 2;
	}
	pid = start(atol(argv[1]), argv + 2, &go, &said);
	until_ready(said, argv[2]);
	printf("ready %d\n", pid);
	fflush(stdout);
	if (read(STDIN_FILENO, &now, 1) != 1)
		return 1; /* the pipe closes, and the program ends */
	if (clock_getcpuclockid(pid, &cpu))
		fail("clock_getcpuclockid");
	cpu_before = now_ns(cpu);
	began_realtime = now_ns(CLOCK_REALTIME);
	begun = now_ns(CLOCK_MONOTONIC);
	if (write(go, "\n", 1) != 1)
		fail("write");
	if (wait4(pid, &status, 0, &used) != pid)
		fail("wait4");
	ended = now_ns(CLOCK_MONOTONIC);
	printf("done %lld %lld %d %lld\n", (long long)began_realtime, (long long)(ended - begun),
	       status, (long long)(micros(used.ru_utime) + micros(used.ru_stime) - cpu_before / 1000));
	return 0;
}
