/* SPDX-License-Identifier: Apache-2.0 */
/* The threads that take processes from the kernel. None of them ever waits for the interpreter. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pool.h"

#define STACK (1 << 20)      /* bytes for each */
#define WAITING 256          /* results that Python has not taken; beyond that nothing is gathered */
#define EXIT_MS 50           /* for the end of a process that was let go */

/* The caller has the lock, and does not use the pool any more. */
void leave(struct pool *p)
{
	bool last = !--p->users;

	if (p->leaving) /* whoever waits for a process sees whether one can still come */
		pthread_cond_broadcast(&p->arrived);
	pthread_mutex_unlock(&p->lock);
	if (last) {
		forget(p->nothing);
		forget(p->listener);
		free(p);
	}
}

/* Let a process go, and close all that is open of it; false: its time was over before. */
bool let_go(struct taken *t)
{
	bool in_time = watch_end(t->watch); /* first: the number may be another file's afterwards */

	t->watch = -1;
	forget(t->hold);
	forget(t->pidfd);
	t->hold = t->pidfd = -1;
	t->released_ns = now_ns();
	return in_time;
}

/* Its threads need the CPU that Python would be on now. But no other process waits for that: when
 * nobody is there to take the next one, this taker is. */
static void await_end(struct pool *p, struct taken *t)
{
	for (int left = EXIT_MS; left > 0 && p->idle > 0; left -= MOMENT_MS)
		if (poll(&(struct pollfd){ t->pidfd, POLLIN, 0 }, 1, MOMENT_MS))
			break;
}

/* What becomes of a connection: an enum answer, or CLOSED where there is nothing to tell. */
static int see_to(struct pool *p, int conn, struct taken *t)
{
	struct orders *o = p->orders;
	int answer;

	watch_begin(o, t, conn);
	pthread_mutex_lock(&p->lock); /* the watchdog has not looked yet, or sleeps already */
	pthread_cond_signal(&p->begun);
	pthread_mutex_unlock(&p->lock);
	answer = p->pipe ? take_pipe(conn, o, t) : take_socket(conn, o, t);
	if (answer == PROCESS && was_counted(o, t)) {
		let_go(t);
		answer = CLOSED;
	}
	t->spared = answer == PROCESS && is_crowded(o, t);
	if (answer == PROCESS && p->results >= (t->spared ? WAITING / 2 : WAITING))
		because(t, "%d other deaths wait for the agent", WAITING);
	else if (answer == PROCESS && watch_owner(t) && !gather(o, t))
		answer = CLOSED; /* the watchdog was faster, and has told it */
	if (answer != CLOSED && !t->gathered) {
		if (t->spared)
			note_spared(t);
		if (!let_go(t) || t->spared)
			answer = CLOSED;
	}
	if (p->pipe) /* that of a socket is what holds the process */
		close(conn);
	if (answer != CLOSED && t->gathered && t->hold < 0)
		await_end(p, t);
	return answer;
}

/* Whether this taker has something to do again. */
static bool back(struct taker *own)
{
	struct pool *p = own->pool;

	own->since_ns = 0;
	if (own->calm)
		hurry(TAKER_PRIORITY, TAKER_NICE);
	own->calm = false;
	if (own->written_off) {
		own->written_off = false;
		p->orders->left_behind--;
		p->takers++;
	}
	return !p->leaving && p->idle < USUAL;
}

static void *take(void *of)
{
	struct taker *own = of;
	struct pool *p = own->pool;
	int conn, answer = NOBODY;
	sigset_t wakes;

	sigemptyset(&wakes);
	sigaddset(&wakes, WAKE);
	pthread_sigmask(SIG_UNBLOCK, &wakes, NULL);
	hurry(TAKER_PRIORITY, TAKER_NICE);
	pthread_mutex_lock(&p->lock);
	own->tid = (int)syscall(SYS_gettid);
	while (answer != CLOSED && back(own)) {
		struct taken t;

		p->idle++;
		pthread_mutex_unlock(&p->lock);
		answer = wait_for(p->listener, &t, &conn);
		pthread_mutex_lock(&p->lock);
		p->idle--;
		own->since_ns = t.accepted_ns;
		pthread_mutex_unlock(&p->lock);
		if (answer == PROCESS) {
			int got;

			p->orders->busy++;
			got = see_to(p, conn, &t);
			p->orders->busy--;
			if (got != CLOSED)
				tell(p, got, &t);
			else
				coreward_drop(&t);
		} else if (answer == REFUSED) {
			tell(p, answer, &t);
		}
		pthread_mutex_lock(&p->lock);
	}
	p->leaving = p->leaving || answer == CLOSED;
	own->used = false;
	p->takers--;
	pthread_cond_signal(&p->begun);
	leave(p);
	return NULL;
}

/* One thread more; the caller has the lock. */
int start(struct pool *p, void *(*work)(void *), void *of)
{
	pthread_attr_t small;
	sigset_t all, before;
	pthread_t thread;
	int error;

	sigfillset(&all); /* signals are Python's */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	error = pthread_create(&thread, &small, work, of);
	pthread_attr_destroy(&small);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!error)
		p->users++;
	return error;
}

int start_taker(struct pool *p)
{
	int error = EAGAIN;

	for (int i = 0; i < TAKERS && error == EAGAIN; i++)
		if (!p->all[i].used) {
			p->all[i] = (struct taker){ .pool = p, .used = true };
			error = start(p, take, &p->all[i]);
			p->all[i].used = !error;
			p->takers += !error;
			break;
		}
	return error;
}
