/* sample_places [LIBRARY]: threads that stay where their names say, in functions of known names.
 *
 * Beside the main one: two that wait for a lock, one that naps, one that polls, one that spins.
 * At each newline on stdin it loads LIBRARY, and says so; it ends when its standard input does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <time.h>

#include "victim.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t started;
static volatile unsigned long turns;

static void wait_for_lock(void)
{
	pthread_mutex_lock(&lock);
}

static void nap(void)
{
	struct timespec long_time = {100000, 0};

	nanosleep(&long_time, NULL);
}

static void wait_for_input(void)
{
	int ends[2];

	check(pipe(ends) == 0, "pipe");
	struct pollfd input = {.fd = ends[0], .events = POLLIN};

	poll(&input, 1, -1);
}

static void spin_inside(void)
{
	for (;;)
		turns++;
}

static void spin(void)
{
	spin_inside();
}

struct start {
	const char *name;
	void (*run)(void);
};

static void *enter(void *argument)
{
	struct start *start = argument;

	pthread_setname_np(pthread_self(), start->name);
	pthread_barrier_wait(&started);
	start->run();
	return NULL;
}

int main(int argc, char **argv)
{
	static struct start starts[] = {
		{"lock-1", wait_for_lock}, {"lock-2", wait_for_lock}, {"nap", nap},
		{"poll", wait_for_input},  {"spin", spin},
	};
	unsigned int count = sizeof(starts) / sizeof(starts[0]);
	char line[8];

	pthread_mutex_lock(&lock);
	pthread_barrier_init(&started, NULL, count + 1);
	for (unsigned int i = 0; i < count; i++) {
		pthread_t thread;

		check(pthread_create(&thread, NULL, enter, &starts[i]) == 0, "pthread_create");
	}
	pthread_barrier_wait(&started);
	check(write(STDOUT_FILENO, "ready\n", 6) == 6, "write");
	while (read(STDIN_FILENO, line, sizeof(line)) > 0) {
		check(argc > 1 && dlopen(argv[1], RTLD_NOW) != NULL, "dlopen");
		check(write(STDOUT_FILENO, "loaded\n", 7) == 7, "write");
	}
	return 0;
}
