// N threads sleep; the main thread crashes on a null pointer once it is told to.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 0;
	pthread_attr_t small;
	pthread_t id;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&id, &small, sleeper, NULL))
			return 1;
	puts("ready");
	fflush(stdout);
	getchar();
	*(volatile int *)0 = 0;
}
