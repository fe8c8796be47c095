/* SPDX-License-Identifier: Apache-2.0 */
/* The coredump socket: its protocol is that of <linux/coredump.h>. */
#include <sys/socket.h>
#include <unistd.h>

#include "native.h"

#define KERNEL_S 1           /* patience with the kernel's part, which takes microseconds */

struct request {
	uint32_t size, size_ack;
	uint64_t mask;
};

#define KERNEL 1             /* the kernel writes its core into the socket */
#define USERSPACE 2
#define WAIT 8               /* until we close the socket */

static bool receive(int conn, void *to, size_t size)
{
	return recv(conn, to, size, MSG_WAITALL) == (ssize_t)size;
}

static bool negotiate(int conn, bool stream, struct taken *t)
{
	struct request asked;
	struct request answer = { sizeof(answer), 0, WAIT | (stream ? KERNEL : USERSPACE) };
	char later[4096];
	uint32_t mark;

	if (!receive(conn, &asked, sizeof(asked)))
		return because(t, "pid %d: the kernel's hand-off ended early", t->pid);
	if (asked.size < sizeof(asked) || asked.size > sizeof(later) ||
	    asked.size_ack < sizeof(answer))
		return because(t, "pid %d: not a coredump request: sizes %u, %u", t->pid,
			       asked.size, asked.size_ack);
	if (asked.size > sizeof(asked) && !receive(conn, later, asked.size - sizeof(asked)))
		return because(t, "pid %d: the kernel's hand-off ended early", t->pid);
	if (answer.mask & ~asked.mask)
		return because(t, "pid %d: the kernel offers %#llx, not %#llx", t->pid,
			       (unsigned long long)asked.mask, (unsigned long long)answer.mask);
	if (send(conn, &answer, sizeof(answer), MSG_NOSIGNAL) != sizeof(answer) ||
	    !receive(conn, &mark, sizeof(mark)))
		return because(t, "pid %d: the kernel broke off its hand-off", t->pid);
	if (mark)
		return because(t, "pid %d: the kernel refuses our answer: %u", t->pid, mark);
	return true;
}

/* An enum answer; the connection stays the caller's. */
int take_socket(int conn, struct orders *o, struct taken *t)
{
	static const struct timeval patience = { KERNEL_S, 0 };

	t->hold = conn;
	if (setsockopt(conn, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) ||
	    setsockopt(conn, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) ||
	    !peer(conn, &t->pidfd, t) || !identify(t, 0) || !negotiate(conn, o->stream, t))
		return REFUSED;
	return PROCESS;
}
