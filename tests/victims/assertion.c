/* A failed assertion: SIGABRT, with glibc's message. */
#include <assert.h>

#include "victim.h"

static void require(int value)
{
	assert(value == 0);
}

int main(int argc, char **argv)
{
	ready(argc, argv);
	require(argc);
	return 0;
}
