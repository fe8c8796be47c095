/* probe_leaderless: its main thread leaves by pthread_exit; another one waits in pause(). */
#define _GNU_SOURCE
#include <pthread.h>

#include "victim.h"

static pthread_t leader;

static void *survivor(void *unused)
{
	check(pthread_join(leader, NULL) == 0, "pthread_join");
	if (write(STDOUT_FILENO, "ready\n", 6) != 6)
		_exit(2);
	for (;;)
		pause();
	return unused;
}

int main(void)
{
	pthread_t thread;

	leader = pthread_self();
	check(pthread_create(&thread, NULL, survivor, NULL) == 0, "pthread_create");
	pthread_exit(NULL);
}
