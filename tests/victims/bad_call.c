/* Calls through a bad pointer: bad_call null|low|data|unmapped [now] */
#include "victim.h"

static char data[64] = { (char)0xc3 };

__attribute__((noinline)) static int call(int (*function)(void))
{
	return function() + 1;
}

__attribute__((noinline)) static int outer(void *pointer)
{
	return call((int (*)(void))pointer) + 1;
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";
	void *pointer = NULL;

	if (strcmp(kind, "low") == 0)
		pointer = (void *)0x123;
	if (strcmp(kind, "data") == 0)
		pointer = data;
	if (strcmp(kind, "unmapped") == 0)
		pointer = (void *)0x12345678;
	ready(argc, argv);
	return outer(pointer) + 1;
}
