/* Divides an integer by zero: SIGFPE, FPE_INTDIV. */
#include "victim.h"

static int divide(volatile int a, volatile int b)
{
	return a / b;
}

int main(int argc, char **argv)
{
	ready(argc, argv);
	return divide(argc, 0);
}
