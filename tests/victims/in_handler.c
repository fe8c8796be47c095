/* A fault in a signal handler that runs on a stack of its own: in_handler [now] */
#include <signal.h>
#include <string.h>

#include "victim.h"

static void handler(int number)
{
	*(volatile int *)NULL = number;
}

static void work(void)
{
	char far[1 << 14]; /* from what main's registers point to */

	memset(far, 1, sizeof(far));
	raise(SIGUSR1 + far[0] - far[1]);
}

int main(int argc, char **argv)
{
	static char stack[1 << 16];
	stack_t other = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };

	check(sigaltstack(&other, NULL) == 0, "sigaltstack");
	check(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
	ready(argc, argv);
	work();
	return 2;
}
