/* SPDX-License-Identifier: Apache-2.0 */
/* Who comes first: a process that is dying, and the restart of its service, waits for the takers. */
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native.h"

/*
 * The caller's thread comes before what is not of real time. A nice value alone counts only among the
 * threads of a session (autogroups, sched(7)) or of a cgroup with a share of the CPU; helpers of the
 * pipe, which have neither, would come before us, and takers were kept from the CPU for 95 ms.
 */
void hurry(int priority, int nice)
{
	const struct sched_param real = { .sched_priority = priority };

	/* where real time is refused: a container without CAP_SYS_NICE, a cgroup with no part of it */
	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), nice);
	sched_setscheduler(0, SCHED_RR, &real);
}

/* Another thread of ours goes on with its nice value alone. */
void calm(int tid)
{
	const struct sched_param none = { 0 };

	sched_setscheduler(tid, SCHED_OTHER, &none);
}

/* One that a thread of Python may have while a taker waits: it runs at the taker's priority then. */
void make_lock(pthread_mutex_t *lock)
{
	pthread_mutexattr_t how;

	pthread_mutexattr_init(&how);
	pthread_mutexattr_setprotocol(&how, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(lock, &how);
	pthread_mutexattr_destroy(&how);
}
