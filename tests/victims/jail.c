/* Runs a program after a plain chroot: jail DIRECTORY PROGRAM [ARGUMENTS...] */
#include "victim.h"

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	check(chroot(argv[1]) == 0 && chdir("/") == 0, argv[1]);
	execv(argv[2], argv + 2);
	check(0, argv[2]);
	return 2;
}
