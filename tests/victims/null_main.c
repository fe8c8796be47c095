/* Writes to address 0 on the main thread: SIGSEGV, SEGV_MAPERR. */
#include "victim.h"

static void inner(int *pointer)
{
	*pointer = 1;
}

static void outer(int *pointer)
{
	inner(pointer);
}

int main(int argc, char **argv)
{
	ready(argc, argv);
	outer(NULL);
	return 0;
}
