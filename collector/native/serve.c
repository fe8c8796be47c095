/* SPDX-License-Identifier: Apache-2.0 */
/* What Python has of the threads that take processes: it starts them, takes what they tell, and ends
 * them. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"

#define STOP_MS 2000         /* for takers to leave accept(2), on a busy host */

/* It does nothing, but a call that waits ends: EINTR (signal(7)). */
static void woken(int number)
{
	(void)number;
}

void *coreward_serve(int listener, int pipe, struct orders *o)
{
	static const struct sigaction wakes = { .sa_handler = woken };
	struct pool *p = calloc(1, sizeof(*p));
	pthread_condattr_t clock;
	int error = ENOMEM;

	if (!p)
		return NULL;
	p->orders = o;
	p->listener = fcntl(listener, F_DUPFD_CLOEXEC, 0); /* its number may be another's, once closed */
	p->pipe = pipe;
	p->last = p->held = &p->first;
	p->users = 1;
	p->nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
	sigaction(WAKE, &wakes, NULL);
	make_lock(&p->lock);
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
	r = next_result(p);
	answer = r ? r->answer : p->leaving && !p->takers ? CLOSED : NOBODY;
	if (r)
		*t = r->taken;
	leave(p);
	free(r);
	return answer;
}

/* One that is about to wait in accept(2) does not hear a signal that comes before: it is sent again. */
void coreward_stop(void *of)
{
	static const struct timespec moment = { 0, MOMENT_MS * 1000000 };
	struct pool *p = of;
	int left = STOP_MS;
	bool waits = true;

	pthread_mutex_lock(&p->lock);
	p->leaving = true;
	pthread_cond_signal(&p->begun);
	while (waits && left > 0) {
		waits = false;
		for (int i = 0; i < TAKERS; i++)
			if (p->all[i].used && !p->all[i].since_ns) {
				waits = true;
				if (p->all[i].tid)
					tgkill(getpid(), p->all[i].tid, WAKE);
			}
		pthread_mutex_unlock(&p->lock);
		nanosleep(&moment, NULL);
		left -= MOMENT_MS;
		pthread_mutex_lock(&p->lock);
	}
	pthread_cond_broadcast(&p->arrived); /* where the last one has told nothing */
	pthread_mutex_unlock(&p->lock);
}

void coreward_leave(void *of)
{
	struct pool *p = of;
	struct taken t;
	int answer;

	while ((answer = coreward_take(p, &t, 0)) != NOBODY && answer != CLOSED)
		if (answer == PROCESS) {
			discard(&t);
			unpin(p->orders, &t);
		}
	pthread_mutex_lock(&p->lock);
	p->leaving = true;
	pthread_cond_signal(&p->begun);
	leave(p);
}

int coreward_unwatch(int watch)
{
	return watch_end(watch);
}
