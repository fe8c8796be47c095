/* A null dereference in a function that was inlined into its caller. */
#include "victim.h"

static inline __attribute__((always_inline)) void store(int *pointer)
{
	*pointer = 1;
}

static void update(int *pointer)
{
	store(pointer);
}

int main(int argc, char **argv)
{
	ready(argc, argv);
	update(NULL);
	return 0;
}
