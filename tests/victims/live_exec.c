// Begins its own program anew all the time, from a thread that is not the main one; argv[1] is a file
// that gets the two numbers of `report`: how often it did, and what went wrong.
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

#include "victim.h"

static struct {
	uint64_t turns, wrong;
} volatile *report;

static void *again(void *file)
{
	usleep(1000);
	execl("/proc/self/exe", "live_exec", file, "again", NULL);
	report->wrong++;
	return NULL;
}

int main(int argc, char **argv)
{
	int first = argc == 2, fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	pthread_t thread;
	sigset_t blocked, none;

	check(fd >= 0 && ftruncate(fd, sizeof *report) == 0, "report");
	report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(report != MAP_FAILED, "report");
	if (first)
		check(write(STDOUT_FILENO, "ready\n", 6) == 6, "ready");
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, NULL, &blocked);
	if (memcmp(&blocked, &none, 8)) // the kernel's part of it
		report->wrong++;
	report->turns++;
	check(pthread_create(&thread, NULL, again, argv[1]) == 0, "thread");
	for (;;)
		pause();
}
