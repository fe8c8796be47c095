// Counts what its signal handlers get: "usr1 A usr2 B ..." on each line of its standard output, one
// line for every signal. Blocks in epoll_wait, whose EINTR it counts as well.
#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>

#include "victim.h"

static volatile int usr1, usr2, rt, eintr;

static void on_signal(int number)
{
	if (number == SIGUSR1)
		usr1++;
	else if (number == SIGUSR2)
		usr2++;
	else
		rt++;
}

int main(void)
{
	struct sigaction action = {.sa_handler = on_signal};
	struct epoll_event event;
	int e = epoll_create1(0);
	epoll_ctl(e, EPOLL_CTL_ADD, 0, &(struct epoll_event){.events = EPOLLIN});
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR2, &action, NULL);
	sigaction(SIGRTMIN, &action, NULL);
	write(1, "ready\n", 6);
	while (epoll_wait(e, &event, 1, -1) < 0 && errno == EINTR) {
		eintr++;
		dprintf(1, "usr1 %d usr2 %d rt %d eintr %d\n", usr1, usr2, rt, eintr);
	}
	return 0;
}
