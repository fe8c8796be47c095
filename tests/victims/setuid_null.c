/* Writes to address 0 in a set-user-id program: what it does itself is nothing special; the test
 * gives the built file the bit and another owner, and runs it as a plain user. */
#include "victim.h"

static void privileged(volatile int *pointer)
{
	*pointer = 1;
}

int main(int argc, char **argv)
{
	check(geteuid() != getuid(), "not set-user-id");
	ready(argc, argv);
	privileged(NULL);
	return 0;
}
