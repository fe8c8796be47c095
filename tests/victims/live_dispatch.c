// Threads with syscall user dispatch (prctl(2)), as an emulator has them; argv[1] is a file that gets
// the two numbers of `report`. "emulate": its foreign calls come to its handler, each counted; "wait":
// it blocks in a call that its range allows. Any call made in their name from elsewhere is a SIGSYS.
#include <pthread.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "victim.h"

#define DISPATCH 59 // PR_SET_SYSCALL_USER_DISPATCH <linux/prctl.h>
#define FOREIGN 0x1234
#define ALLOW 0
#define BLOCK 1

extern char __executable_start, etext;
static struct {
	uint64_t turns, wrong;
} volatile *report;
static volatile char selector = ALLOW;
static volatile uint64_t dispatched;

static void foreign(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	selector = ALLOW;
	if (info->si_code == 2 && info->si_syscall == FOREIGN) // SYS_USER_DISPATCH
		dispatched++;
	else
		report->wrong++;
}

static void *emulate(void *unused)
{
	check(prctl(DISPATCH, 1, 0, 0, &selector) == 0, "dispatch");
	for (;;) {
		selector = BLOCK;
		for (volatile int i = 0; i < 100000; i++)
			;
		syscall(FOREIGN);
		if (dispatched != ++report->turns || selector != ALLOW)
			report->wrong++;
	}
	return unused;
}

static void *wait_here(void *unused)
{
	char *start = &__executable_start;

	check(prctl(DISPATCH, 1, start, &etext - start, NULL) == 0, "dispatch");
	for (;;) {
		long result;

		__asm__ volatile("syscall" : "=a"(result) : "0"(SYS_pause) : "rcx", "r11", "memory");
		report->wrong++; // nothing wakes it
	}
	return unused;
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = foreign, .sa_flags = SA_SIGINFO};
	int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
	pthread_t thread;

	check(fd >= 0 && ftruncate(fd, sizeof *report) == 0, "report");
	report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(report != MAP_FAILED && sigaction(SIGSYS, &action, NULL) == 0, "report");
	check(pthread_create(&thread, NULL, wait_here, NULL) == 0, "thread");
	if (argc > 2 && !strcmp(argv[2], "all")) { // no thread without it
		check(write(STDOUT_FILENO, "ready\n", 6) == 6, "ready");
		emulate(NULL);
	}
	check(pthread_create(&thread, NULL, emulate, NULL) == 0, "thread");
	ready(argc, argv);
	return report->wrong != 0;
}
