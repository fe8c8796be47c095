/* Handles its SIGSEGV: handled exit|reraise|return [now]
 *
 * exit: the handler leaves by _exit(1). reraise: it restores the default action and raises the
 * signal again. return: it jumps back, and the program goes on and exits with 0. */
#include <setjmp.h>
#include <signal.h>

#include "victim.h"

static const char *kind = "";
static sigjmp_buf back;

static void on_fault(int signal_number)
{
	if (strcmp(kind, "exit") == 0)
		_exit(1);
	if (strcmp(kind, "return") == 0)
		siglongjmp(back, 1);
	signal(signal_number, SIG_DFL);
	raise(signal_number);
}

static void fault(volatile int *pointer)
{
	*pointer = 1;
}

int main(int argc, char **argv)
{
	kind = argc > 1 ? argv[1] : "";
	signal(SIGSEGV, on_fault);
	ready(argc, argv);
	if (sigsetjmp(back, 1) == 0)
		fault((int *)0x20);
	return 0;
}
