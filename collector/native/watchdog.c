/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watchdog sees to it that no process waits for another one's sake. It touches nothing of any
 * process.
 *
 * A taker can be kept waiting in the kernel, for ever, by what a process controls. It is not waited
 * for, and cannot be ended: others take its place, up to a bound; beyond that the watchdog itself
 * accepts, and lets go at once.
 */
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"

#define TICK_MS 5            /* the watchdog looks so often while somebody waits */
#define MOMENT_NS 2000000LL  /* a usual process is taken in less */
#define HUNGRY 4             /* looks with nobody free, until there is one taker more */

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

/* Real time is for moments. Who has more to do, with tens of thousands of mappings, shares the CPUs. */
static void calm_down(struct pool *p, int64_t now)
{
	for (int i = 0; i < TAKERS; i++) {
		struct taker *one = &p->all[i];

		if (one->used && !one->calm && one->since_ns && now - one->since_ns > MOMENT_NS) {
			one->calm = true;
			calm(one->tid);
		}
	}
}

static void cut_overdue(struct pool *p)
{
	struct taken t;

	while (watch_cut(p->orders, p->nothing, &t))
		if (t.pid > 0)
			tell(p, PROCESS, &t);
}

void *watchdog(void *of)
{
	static const struct timespec tick = { 0, TICK_MS * 1000000 };
	struct pool *p = of;
	int hungry = 0;

	hurry(TAKER_PRIORITY + 1, TAKER_NICE - 1);
	pthread_mutex_lock(&p->lock);
	while (!p->leaving || watch_any(p->orders)) {
		if (!p->leaving && p->idle && !watch_any(p->orders)) {
			pthread_cond_wait(&p->begun, &p->lock);
			continue;
		}
		pthread_mutex_unlock(&p->lock);
		nanosleep(&tick, NULL);
		cut_overdue(p);
		pthread_mutex_lock(&p->lock);
		calm_down(p, now_ns());
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
