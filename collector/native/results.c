/* SPDX-License-Identifier: Apache-2.0 */
/* What the takers have taken, until Python asks for it. */
#include <pthread.h>
#include <stdlib.h>

#include "pool.h"

/* Behind those before it, but a process that is held comes before all that were released. */
static void push(struct pool *p, struct result *r)
{
	bool is_held = r->answer == PROCESS && r->taken.hold >= 0;
	struct result **place = is_held ? p->held : p->last;

	r->next = *place;
	*place = r;
	if (is_held)
		p->held = &r->next;
	if (!r->next)
		p->last = &r->next;
	p->results++;
	pthread_cond_signal(&p->arrived);
}

/* The first of them; NULL: there is none. The caller has the lock. */
struct result *next_result(struct pool *p)
{
	struct result *r = p->first;

	if (!r)
		return NULL;
	p->first = r->next;
	if (p->last == &r->next)
		p->last = &p->first;
	if (p->held == &r->next)
		p->held = &p->first;
	p->results--;
	return r;
}

void tell(struct pool *p, int answer, const struct taken *t)
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
