/* Recursion without an end: SIGSEGV in the guard page below the stack. */
#include "victim.h"

static int recurse(int depth)
{
	volatile char frame[128];

	frame[0] = (char)depth;
	return recurse(depth + 1) + frame[0];
}

int main(int argc, char **argv)
{
	ready(argc, argv);
	return recurse(0);
}
