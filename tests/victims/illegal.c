/* Executes an undefined instruction: SIGILL. */
#include "victim.h"

static void undefined(void)
{
	__asm__ volatile("ud2");
}

int main(int argc, char **argv)
{
	ready(argc, argv);
	undefined();
	return 0;
}
