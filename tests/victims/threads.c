/* threads [N (default 1000)] [now]: N threads sleep in pause(); the last one writes to address 0.
 *
 * N counts the threads beside the main one. */
#define _GNU_SOURCE
#include <pthread.h>

#include "victim.h"

static pthread_barrier_t started;

static void crash(volatile int *pointer)
{
	*pointer = 1;
}

static void *sleeper(void *unused)
{
	pthread_barrier_wait(&started);
	for (;;)
		pause();
	return unused;
}

static void *crasher(void *unused)
{
	int go;

	pthread_setname_np(pthread_self(), "crasher");
	pthread_barrier_wait(&started);
	if (read(*(int *)unused, &go, 1) >= 0)
		crash(NULL);
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned long count = number(argc, argv, 1, 1000);
	int ends[2];
	pthread_attr_t small;
	pthread_t thread;

	check(pipe(ends) == 0 && count > 0, "pipe");
	pthread_barrier_init(&started, NULL, (unsigned int)count + 1);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 << 10);
	for (unsigned long i = 0; i < count; i++)
		check(pthread_create(&thread, &small, i + 1 < count ? sleeper : crasher,
				     &ends[0]) == 0, "pthread_create");
	pthread_barrier_wait(&started);
	ready(argc, argv);
	check(write(ends[1], "", 1) == 1, "write");
	for (;;)
		pause();
}
