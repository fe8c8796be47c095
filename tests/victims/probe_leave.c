/* probe_leave exec|exit: ends its other threads by execve of /bin/true, or by exit(0). */
#include <pthread.h>

#include "victim.h"

#define THREADS 5

static pthread_barrier_t started;

static void *sleeper(void *unused)
{
	pthread_barrier_wait(&started);
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	pthread_barrier_init(&started, NULL, THREADS + 1);
	for (int i = 0; i < THREADS; i++)
		check(pthread_create(&thread, NULL, sleeper, NULL) == 0, "pthread_create");
	pthread_barrier_wait(&started);
	ready(argc, argv);
	if (argc > 1 && strcmp(argv[1], "exec") == 0)
		execl("/bin/true", "true", (char *)NULL);
	exit(0);
}
