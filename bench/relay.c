/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs another crash handler as its package would, and reports what each run cost.
 *
 *     relay ARGUMENT...     what the kernel starts for a crash: PROGRAM ARGUMENT... EXTRA
 *     relay --listen PATH   what systemd does for systemd-coredump.socket: accept a connection on
 *                           the SOCK_SEQPACKET socket PATH, run PROGRAM with it (sd_listen_fds(3))
 *
 * Settings are compiled in, because a core_pattern has room for 127 bytes: PROGRAM, LIBRARIES (an
 * LD_LIBRARY_PATH), EXTRA (a last argument, or ""), REPORT (a fifo, to which one line goes for each
 * run: "kernel|socket CPU_US STATUS").
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIRST_PASSED 3 /* SD_LISTEN_FDS_START */
#define UNIT_NICE 9    /* Nice= of systemd-coredump@.service */

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void report(const char *what, long long cpu_us, int status)
{
	char line[128];
	int size = snprintf(line, sizeof(line), "%s %lld %d\n", what, cpu_us, status);
	int fd = open(REPORT, O_WRONLY | O_NONBLOCK | O_CLOEXEC); /* nobody listens: no report */

	if (fd >= 0 && write(fd, line, (size_t)size) != size)
		perror(REPORT);
	if (fd >= 0)
		close(fd);
}

/* Waits for a program and whatever it left behind. */
static void wait_all(const char *what, pid_t program)
{
	long long cpu_us = 0;
	int status = 0, last;
	struct rusage used;
	pid_t pid;

	while ((pid = wait4(-1, &last, 0, &used)) > 0 || errno == EINTR) {
		if (pid <= 0)
			continue;
		if (pid == program)
			status = last;
		cpu_us += (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000LL +
			  used.ru_utime.tv_usec + used.ru_stime.tv_usec;
	}
	report(what, cpu_us, status);
}

static void serve(const char *path)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	char *command[] = { PROGRAM, NULL };
	char own[16];
	int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	int conn;
	pid_t pid;

	if (strlen(path) >= sizeof(at.sun_path))
		fail(path);
	strcpy(at.sun_path, path);
	if (listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof(at)) ||
	    chmod(path, 0600) || listen(listener, 16))
		fail(path);
	if (write(STDOUT_FILENO, "ready\n", 6) != 6)
		fail("stdout");
	for (;;) {
		conn = accept(listener, NULL, NULL);
		if (conn < 0)
			fail("accept");
		pid = fork();
		if (pid == 0) {
			snprintf(own, sizeof(own), "%d", getpid());
			setenv("LISTEN_PID", own, 1);
			setenv("LISTEN_FDS", "1", 1);
			if (conn == FIRST_PASSED)
				fcntl(conn, F_SETFD, 0);
			else
				dup2(conn, FIRST_PASSED);
			if (nice(UNIT_NICE) == -1)
				perror("nice");
			execv(PROGRAM, command);
			fail(PROGRAM);
		}
		close(conn);
		if (pid < 0)
			fail("fork");
		wait_all("socket", pid);
	}
}

int main(int argc, char **argv)
{
	char *command[64] = { PROGRAM };
	int count = 1;
	pid_t pid;

	setenv("LD_LIBRARY_PATH", LIBRARIES, 1);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (argc == 3 && strcmp(argv[1], "--listen") == 0)
		serve(argv[2]);
	while (count < argc && count < 62) {
		command[count] = argv[count];
		count++;
	}
	if (EXTRA[0])
		command[count++] = EXTRA;
	pid = fork();
	if (pid == 0) {
		execv(PROGRAM, command);
		fail(PROGRAM);
	}
	close(STDIN_FILENO); /* the kernel waits until nobody has the pipe */
	if (pid < 0)
		fail("fork");
	wait_all("kernel", pid);
	return 0;
}
