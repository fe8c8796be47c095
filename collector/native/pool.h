/* SPDX-License-Identifier: Apache-2.0 */
/* What pool.c, results.c, serve.c and watchdog.c know of the threads that take processes. */
#ifndef COREWARD_POOL_H
#define COREWARD_POOL_H

#include <pthread.h>

#include "native.h"

#define USUAL 8              /* takers */
#define TAKER_NICE -10       /* a process, and the restart of its service, wait for it */
#define WAKE (SIGRTMAX - 5)  /* ends a taker's accept(2); see coreward_stop */
#define TAKER_PRIORITY 1     /* of SCHED_RR, the lowest; see priority.c */

struct result {
	struct result *next;
	int answer;
	struct taken taken;
};

struct pool {
	struct orders *orders;
	int listener;
	bool pipe;
	int nothing;               /* /dev/null */
	pthread_mutex_t lock;      /* of all that follows */
	pthread_cond_t arrived, begun;
	struct result *first, **held, **last; /* behind the last one that is held; behind all */
	_Atomic int results;
	int users;                 /* of this memory: threads, and Python */
	int takers;                /* those that were written off are none */
	_Atomic int idle;
	bool leaving;
	struct taker {
		struct pool *pool;
		int64_t since_ns;      /* it took a connection; 0: it has none */
		int tid;
		bool used, written_off, calm;
	} all[TAKERS];
};

struct result *next_result(struct pool *p);
void tell(struct pool *p, int answer, const struct taken *t);
bool let_go(struct taken *t);
void leave(struct pool *p);
int start(struct pool *p, void *(*work)(void *), void *of);
int start_taker(struct pool *p);
void *watchdog(void *of);

#endif
