/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads that take processes from the kernel, and the watchdog that sees to it that no process
 * waits for another one's sake. None of them ever waits for the interpreter.
 *
 * A taker can be kept waiting in the kernel, for ever, by what a process controls. It is not waited
 * for, and cannot be ended: others take its place, up to a bound; beyond that the watchdog itself
 * accepts, and lets go at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native.h"

#define USUAL 8              /* takers */
#define STACK (1 << 20)      /* bytes for each */
#define TICK_MS 10           /* the watchdog looks so often while somebody waits */
#define HUNGRY 2             /* looks with nobody free, until there is one taker more */
#define TAKER_NICE -10       /* a process, and the restart of its service, wait for it */
#define WAITING 256          /* results that Python has not taken; beyond that nothing is gathered */

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
	struct result *first, **last;
	_Atomic int results;
	int users;                 /* of this memory: threads, and Python */
	int takers, idle;          /* those that were written off are none */
	bool leaving;
	struct taker {
		struct pool *pool;
		int64_t since_ns;      /* it took a connection; 0: it has none */
		bool used, written_off;
	} all[TAKERS];
};

static void push(struct pool *p, struct result *r)
{
	r->next = NULL;
	*p->last = r;
	p->last = &r->next;
	p->results++;
	pthread_cond_signal(&p->arrived);
}

static void tell(struct pool *p, int answer, const struct taken *t)
{
	struct result *r = calloc(1, sizeof(*r));

	if (!r) {
		p->orders->untold++;
		return;
	}
	r->answer = answer;
	r->taken = *t;
	pthread_mutex_lock(&p->lock);
	push(p, r);
	pthread_mutex_unlock(&p->lock);
}

/* The caller has the lock, and does not use the pool any more. */
static void leave(struct pool *p)
{
	bool last = !--p->users;

	pthread_cond_broadcast(&p->arrived);
	pthread_mutex_unlock(&p->lock);
	if (last) {
		forget(p->nothing);
		forget(p->listener);
		free(p);
	}
}

/* Let a process go, and close all that is open of it; false: its time was over before. */
static bool let_go(struct taken *t)
{
	bool in_time = watch_end(t->watch); /* first: the number may be another file's afterwards */

	t->watch = -1;
	forget(t->hold);
	forget(t->pidfd);
	t->hold = t->pidfd = -1;
	t->released_ns = now_ns();
	return in_time;
}

/* What becomes of a connection: an enum answer, or CLOSED where there is nothing to tell. */
static int see_to(struct pool *p, int conn, struct taken *t)
{
	struct orders *o = p->orders;
	int answer;

	watch_begin(o, t, conn);
	pthread_cond_signal(&p->begun);
	answer = p->pipe ? take_pipe(conn, o, t) : take_socket(conn, o, t);
	if (answer == PROCESS && p->results >= WAITING)
		because(t, "%d other deaths wait for the agent", WAITING);
	else if (answer == PROCESS && watch_owner(t) && !gather(o, t))
		answer = CLOSED; /* the watchdog was faster, and has told it */
	if (answer != CLOSED && !t->gathered && !let_go(t))
		answer = CLOSED;
	if (p->pipe) /* that of a socket is what holds the process */
		close(conn);
	return answer;
}

/* Whether this taker has something to do again. */
static bool back(struct taker *own)
{
	struct pool *p = own->pool;

	own->since_ns = 0;
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

	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), TAKER_NICE);
	pthread_mutex_lock(&p->lock);
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
static int start(struct pool *p, void *(*work)(void *), void *of)
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

static int start_taker(struct pool *p)
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

/* ---- the watchdog */

static bool somebody_knocks(struct pool *p)
{
	return poll(&(struct pollfd){ p->listener, POLLIN, 0 }, 1, 0) == 1;
}

/* No taker is free, and there can be no more of them: accept one, and let it go. */
static void turn_away(struct pool *p)
{
	static const struct timeval moment = { 0, 1000 }, no_limit = { 0, 0 };
	struct taken t;
	int conn, answer;

	/* a taker that is free again may be faster: then nobody knocks any more */
	setsockopt(p->listener, SOL_SOCKET, SO_RCVTIMEO, &moment, sizeof(moment));
	answer = wait_for(p->listener, &t, &conn);
	setsockopt(p->listener, SOL_SOCKET, SO_RCVTIMEO, &no_limit, sizeof(no_limit));
	if (answer != PROCESS)
		return;
	if (p->pipe) /* its helper notes the death; the process is known to nobody else */
		because(&t, "a helper of the pipe was turned away: all %d threads are kept waiting", TAKERS);
	else if (peer(conn, &t.pidfd, &t) && identify(&t, 0))
		because(&t, "%d others keep the agent waiting", TAKERS);
	t.hold = conn;
	let_go(&t);
	tell(p, t.pid > 0 ? PROCESS : REFUSED, &t);
}

/* Takers that do not come back in time are not counted on any more. */
static void write_off(struct pool *p, int64_t now)
{
	int64_t most = p->orders->patience_ns;

	for (int i = 0; i < TAKERS && most; i++) {
		struct taker *one = &p->all[i];

		if (one->used && !one->written_off && one->since_ns && now - one->since_ns > most) {
			one->written_off = true;
			p->orders->left_behind++;
			p->takers--;
		}
	}
}

static void cut_overdue(struct pool *p, bool all)
{
	struct taken t;

	while (watch_cut(p->orders, p->nothing, all, &t))
		if (t.pid > 0)
			tell(p, PROCESS, &t);
}

static void *watchdog(void *of)
{
	static const struct timespec tick = { 0, TICK_MS * 1000000 };
	struct pool *p = of;
	int hungry = 0;

	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), TAKER_NICE - 1);
	pthread_mutex_lock(&p->lock);
	while (!p->leaving || watch_any(p->orders)) {
		if (!p->leaving && p->idle && !watch_any(p->orders)) {
			pthread_cond_wait(&p->begun, &p->lock);
			continue;
		}
		pthread_mutex_unlock(&p->lock);
		nanosleep(&tick, NULL);
		cut_overdue(p, false);
		pthread_mutex_lock(&p->lock);
		write_off(p, now_ns());
		hungry = p->idle || p->leaving ? 0 : hungry + 1;
		if (hungry >= HUNGRY && somebody_knocks(p) && start_taker(p)) {
			pthread_mutex_unlock(&p->lock);
			turn_away(p);
			pthread_mutex_lock(&p->lock);
		}
	}
	leave(p);
	return NULL;
}

/* ---- for Python */

void *coreward_serve(int listener, int pipe, struct orders *o)
{
	struct pool *p = calloc(1, sizeof(*p));
	pthread_condattr_t clock;
	int error = ENOMEM;

	if (!p)
		return NULL;
	p->orders = o;
	p->listener = fcntl(listener, F_DUPFD_CLOEXEC, 0); /* its number may be another's, once closed */
	p->pipe = pipe;
	p->last = &p->first;
	p->users = 1;
	p->nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&p->arrived, &clock);
	pthread_cond_init(&p->begun, &clock);
	pthread_mutex_lock(&p->lock);
	if (p->nothing >= 0 && p->listener >= 0)
		error = start(p, watchdog, p);
	for (int i = 0; i < USUAL && !error; i++)
		error = start_taker(p);
	if (error) { /* what was started waits for connections: the caller ends that, and leaves */
		p->leaving = true;
		errno = error;
	}
	pthread_mutex_unlock(&p->lock);
	return p;
}

static struct timespec in_ms(int ms)
{
	int64_t at = now_ns() + ms * INT64_C(1000000);

	return (struct timespec){ at / 1000000000, at % 1000000000 };
}

int coreward_take(void *of, struct taken *t, int timeout_ms)
{
	struct timespec until = in_ms(timeout_ms);
	struct pool *p = of;
	struct result *r;
	int answer;

	pthread_mutex_lock(&p->lock);
	p->users++;
	while (!p->first && !(p->leaving && !p->takers))
		if (timeout_ms < 0)
			pthread_cond_wait(&p->arrived, &p->lock);
		else if (pthread_cond_timedwait(&p->arrived, &p->lock, &until))
			break;
	r = p->first;
	answer = r ? r->answer : p->leaving && !p->takers ? CLOSED : NOBODY;
	if (r) {
		p->first = r->next;
		if (!p->first)
			p->last = &p->first;
		p->results--;
		*t = r->taken;
	}
	leave(p);
	free(r);
	return answer;
}

void coreward_leave(void *of)
{
	struct pool *p = of;
	struct taken t;

	while (coreward_take(p, &t, 0) == PROCESS)
		discard(&t);
	pthread_mutex_lock(&p->lock);
	p->leaving = true;
	pthread_cond_signal(&p->begun);
	leave(p);
}

int coreward_unwatch(int watch)
{
	return watch_end(watch);
}
