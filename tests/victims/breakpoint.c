/* Hits a breakpoint instruction with no debugger there: SIGTRAP. */
#include "victim.h"

static void stop_here(void)
{
	__asm__ volatile("int3");
}

int main(int argc, char **argv)
{
	ready(argc, argv);
	stop_here();
	return 0;
}
