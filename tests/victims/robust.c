/* robust [N (default 4)]: N threads hold a robust mutex each, which their exit would mark; the main
 * thread holds three more, and writes to address 0. */
#define _GNU_SOURCE
#include <pthread.h>

#include "victim.h"

#define MOST 1024

pthread_mutex_t locks[MOST + 3];
static pthread_barrier_t held;

static void *holder(void *lock)
{
	check(pthread_mutex_lock(lock) == 0, "pthread_mutex_lock");
	pthread_barrier_wait(&held);
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned long count = number(argc, argv, 1, 4);
	pthread_mutexattr_t robust;
	pthread_attr_t small;
	pthread_t thread;

	check(count <= MOST, "too many threads");
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	pthread_barrier_init(&held, NULL, (unsigned int)count + 1);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 << 10);
	for (unsigned long i = 0; i < count + 3; i++)
		pthread_mutex_init(&locks[i], &robust);
	for (unsigned long i = 0; i < count; i++)
		check(pthread_create(&thread, &small, holder, &locks[i]) == 0, "pthread_create");
	pthread_barrier_wait(&held);
	for (unsigned long i = count; i < count + 3; i++)
		check(pthread_mutex_lock(&locks[i]) == 0, "pthread_mutex_lock");
	ready(argc, argv);
	*(volatile int *)0 = 1;
	return 0;
}
