/* What the victims share: print "ready", then wait for a newline on stdin (unless the last
 * argument is `now`), so that a test waits on events and never on time. */
#ifndef VICTIM_H
#define VICTIM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline void ready(int argc, char **argv)
{
	char byte;

	if (write(STDOUT_FILENO, "ready\n", 6) != 6)
		_exit(2);
	if (argc > 1 && strcmp(argv[argc - 1], "now") == 0)
		return;
	if (read(STDIN_FILENO, &byte, 1) < 0)
		_exit(2);
}

static inline void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(2);
	}
}

static inline unsigned long number(int argc, char **argv, int index, unsigned long otherwise)
{
	return argc > index && strcmp(argv[index], "now") ? strtoul(argv[index], NULL, 10)
							  : otherwise;
}

#endif
