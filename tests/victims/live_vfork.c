// A thread that waits in vfork(2) for a child which sleeps until its standard input ends: it
// cannot be stopped meanwhile. The main thread reads standard input; another one blocks in a futex.
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "victim.h"

static void *wait_for_child(void *argument)
{
	int *hold = argument;
	char byte;
	if (vfork() == 0) {
		close(hold[1]);
		syscall(SYS_read, hold[0], &byte, 1);
		_exit(0);
	}
	return NULL;
}

static void *sleep_long(void *argument)
{
	(void)argument;
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	static int hold[2];
	pthread_t first, second;
	pipe(hold);
	pthread_create(&first, NULL, sleep_long, NULL);
	pthread_create(&second, NULL, wait_for_child, hold);
	ready(argc, argv);
	close(hold[1]);
	pthread_join(second, NULL);
	return 0;
}
