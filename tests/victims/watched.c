/* watched: a service in good health, until a byte on stdin says otherwise.
 *
 * Its thread `waiter` waits for a lock, `ticker` wakes up all the time. Then, one byte each:
 *   s  `ticker` stops: nothing runs any more     d  a thread `stuck` sleeps in D state (vfork)
 *   h  a thread `hung` waits for the lock
 *   f  200 descriptors are opened                m  64 MiB are touched
 *   b  a thread `burner` spins                   r  a thread `reader` reads a file of 256 MiB
 *   newline: null dereference in `serve`                all the time
 * After each byte it prints it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <time.h>

#include "victim.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool ticking = 1;
static volatile unsigned long turns;

static void *wait_for_lock(void *unused)
{
	pthread_mutex_lock(&lock);
	return unused;
}

static void *tick(void *unused)
{
	struct timespec moment = {0, 5000000};

	while (ticking)
		nanosleep(&moment, NULL);
	return wait_for_lock(unused);
}

static void *burn(void *unused)
{
	for (;;)
		turns++;
	return unused;
}

/* More than the cache of a small cgroup: its pages have to make room for each other. */
static void *read_all(void *unused)
{
	static char buffer[1 << 20];
	char name[] = "reader-XXXXXX";
	int fd = mkstemp(name);

	check(fd >= 0 && !unlink(name) && !ftruncate(fd, 256 << 20), "a file to read");
	for (;;) {
		lseek(fd, 0, SEEK_SET);
		while (read(fd, buffer, sizeof(buffer)) > 0)
			;
	}
	return unused;
}

/* The parent of a vfork(2) sleeps uninterruptibly until its child ends. */
static void *sleep_in_d(void *unused)
{
	if (vfork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return unused;
}

static void start(const char *name, void *(*run)(void *))
{
	pthread_t thread;

	check(pthread_create(&thread, NULL, run, NULL) == 0, "pthread_create");
	pthread_setname_np(thread, name);
}

static __attribute__((noinline)) void serve(char wish)
{
	static int *nowhere;

	switch (wish) {
	case 's':
		ticking = 0;
		break;
	case 'h':
		start("hung", wait_for_lock);
		break;
	case 'd':
		start("stuck", sleep_in_d);
		break;
	case 'f':
		for (int i = 0; i < 200; i++)
			check(open("/dev/null", O_RDONLY) >= 0, "open");
		break;
	case 'm':
		memset(malloc(64 << 20), 1, 64 << 20);
		break;
	case 'r':
		start("reader", read_all);
		break;
	case 'b':
		start("burner", burn);
		break;
	default:
		*nowhere = 1;
	}
}

int main(int argc, char **argv)
{
	char wish;

	(void)argc, (void)argv;
	pthread_mutex_lock(&lock);
	start("waiter", wait_for_lock);
	start("ticker", tick);
	check(write(STDOUT_FILENO, "ready\n", 6) == 6, "write");
	while (read(STDIN_FILENO, &wish, 1) == 1) {
		serve(wish);
		check(write(STDOUT_FILENO, &wish, 1) == 1, "write");
	}
	return 0;
}
