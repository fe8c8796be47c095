/* Frees a block twice: glibc says so and aborts. */
#include "victim.h"

static void release(char *block)
{
	free(block);
}

int main(int argc, char **argv)
{
	char *block = malloc(24);

	ready(argc, argv);
	release(block);
	release(block);
	return 0;
}
