/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A dumper in C: of each process that dies it says who it was, how many mappings it has and what the
 * first bytes of its program are, keeps the notes of its threads in a file, and lets it go.
 *
 *	cc -Wall -O2 -o dumper dumper.c
 *	./dumper /run/coreward/dumper NAME [FIELD=VALUE...]
 *
 * FIELD=VALUE are more lines of REGISTER, as `priority=50`, `match.exe=/usr/bin/db` or `pin=yes`.
 * docs/dumpers.md is the reference of the protocol.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_PACKET (16 << 10)
#define MAX_FDS 16

struct message {
	char text[MAX_PACKET + 1];
	int fds[MAX_FDS];
	size_t count;              /* of fds */
};

/* The next message; 0: the agent has closed the connection, or it was none. */
static int hear(int s, struct message *m)
{
	union {
		char room[CMSG_SPACE(sizeof(int) * MAX_FDS)];
		struct cmsghdr align;
	} control;
	struct iovec text = { m->text, MAX_PACKET };
	struct msghdr h = { .msg_iov = &text, .msg_iovlen = 1, .msg_control = &control,
			    .msg_controllen = sizeof(control) };
	ssize_t got = recvmsg(s, &h, MSG_CMSG_CLOEXEC);

	m->count = 0;
	if (got < 0 && errno == ECONNRESET) /* said once; what came before it can be read now */
		got = recvmsg(s, &h, MSG_CMSG_CLOEXEC);
	if (got <= 0)
		return 0;
	m->text[got] = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
			m->count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(m->fds, CMSG_DATA(c), m->count * sizeof(int));
		}
	return 1;
}

/* A field's value, to the end of its line, in `to`; NULL: there is none. (`\\` and `\n` stay.) */
static const char *field(const struct message *m, const char *key, char *to, size_t size)
{
	size_t length = strlen(key);

	for (const char *line = strchr(m->text, '\n'); line; line = strchr(line, '\n')) {
		line++;
		if (!strncmp(line, key, length) && line[length] == '=') {
			snprintf(to, size, "%.*s", (int)strcspn(line + length + 1, "\n"),
				 line + length + 1);
			return to;
		}
	}
	return NULL;
}

/* The descriptor with a name; -1: it did not come. */
static int descriptor(const struct message *m, const char *name)
{
	char names[512], *state = NULL, *one;
	size_t i = 0;

	if (!field(m, "fds", names, sizeof(names)))
		return -1;
	for (one = strtok_r(names, " ", &state); one && i < m->count; one = strtok_r(NULL, " ", &state), i++)
		if (!strcmp(one, name))
			return m->fds[i];
	return -1;
}

/* Its mappings, from the text of /proc/PID/maps, and the first bytes of the first one. */
static int look(const struct message *m, unsigned *mappings, unsigned char first[4])
{
	int maps = descriptor(m, "maps"), mem = descriptor(m, "mem");
	char chunk[4096];
	uint64_t start = 0;
	off_t at = 0;
	ssize_t got;

	*mappings = 0;
	while ((got = pread(maps, chunk, sizeof(chunk), at)) > 0) {
		if (!at)
			start = strtoull(chunk, NULL, 16);
		for (ssize_t i = 0; i < got; i++)
			*mappings += chunk[i] == '\n';
		at += got;
	}
	return pread(mem, first, 4, (off_t)start) == 4 ? 0 : errno;
}

/* Copy the notes of all threads, as a core file has them, to `NAME.PID.notes`. */
static int keep_notes(const struct message *m, const char *name, const char *pid)
{
	int notes = descriptor(m, "notes");
	char path[256], chunk[65536];
	FILE *file;
	off_t at = 0;
	ssize_t got;

	if (notes < 0)
		return ENODATA;
	snprintf(path, sizeof(path), "%s.%s.notes", name, pid);
	file = fopen(path, "w");
	if (!file)
		return errno;
	while ((got = pread(notes, chunk, sizeof(chunk), at)) > 0) {
		if (fwrite(chunk, 1, (size_t)got, file) != (size_t)got)
			break;
		at += got;
	}
	return fclose(file) ? errno : 0;
}

static void handle(int s, const struct message *m, const char *name)
{
	char event[32], pid[32], comm[64], answer[256];
	unsigned char first[4] = { 0 };
	unsigned mappings;
	int status;

	if (!field(m, "event", event, sizeof(event)) || !field(m, "pid", pid, sizeof(pid)))
		return;
	if (!field(m, "comm", comm, sizeof(comm)))
		*comm = 0;
	if (!strncmp(m->text, "PROBE\n", 6)) { /* only with bid=yes */
		snprintf(answer, sizeof(answer), "BID\nevent=%s\npriority=50\n", event);
		send(s, answer, strlen(answer), MSG_NOSIGNAL);
		return;
	}
	if (strncmp(m->text, "DUMP\n", 5))
		return;
	status = look(m, &mappings, first);
	if (!status)
		status = keep_notes(m, name, pid);
	printf("%s[%s]: %u mappings, program begins with %02x %02x %02x %02x: %s\n", comm, pid,
	       mappings, first[0], first[1], first[2], first[3], status ? strerror(status) : "kept");
	fflush(stdout);
	/* it waits until we say this, and then goes */
	snprintf(answer, sizeof(answer), "CONTINUE\nevent=%s\nstatus=%d\nnote=%u mappings\n", event,
		 status, mappings);
	send(s, answer, strlen(answer), MSG_NOSIGNAL);
}

int main(int argc, char **argv)
{
	struct sockaddr_un agent = { .sun_family = AF_UNIX };
	static struct message m;
	char text[4096];
	int at, s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (argc < 3 || strlen(argv[1]) >= sizeof(agent.sun_path)) {
		fprintf(stderr, "usage: dumper SOCKET NAME [FIELD=VALUE...]\n");
		return 2;
	}
	strcpy(agent.sun_path, argv[1]);
	if (s < 0 || connect(s, (struct sockaddr *)&agent, sizeof(agent))) {
		perror(argv[1]);
		return 1;
	}
	at = snprintf(text, sizeof(text), "REGISTER\nversion=1\nname=%s\n", argv[2]);
	for (int i = 3; i < argc && at < (int)sizeof(text); i++)
		at += snprintf(text + at, sizeof(text) - (size_t)at, "%s\n", argv[i]);
	if (at >= (int)sizeof(text) || send(s, text, (size_t)at, MSG_NOSIGNAL) < 0)
		return 1;
	while (hear(s, &m)) {
		if (!strncmp(m.text, "REGISTERED\n", 11)) {
			printf("registered\n");
			fflush(stdout);
		} else if (!strncmp(m.text, "REFUSED\n", 8)) {
			fprintf(stderr, "%s", m.text);
			return 1;
		} else {
			handle(s, &m, argv[2]);
		}
		for (size_t i = 0; i < m.count; i++)
			close(m.fds[i]);
	}
	return 0;
}
