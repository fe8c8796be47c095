/* Runs a copy of a program that is in memory only: in_memory PROGRAM [ARGUMENTS...] */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#include "victim.h"

int main(int argc, char **argv, char **environment)
{
	struct stat status;
	int in, out = memfd_create("copy", MFD_CLOEXEC);

	if (argc < 2)
		return 2;
	in = open(argv[1], O_RDONLY | O_CLOEXEC);
	check(in >= 0 && out >= 0 && fstat(in, &status) == 0, argv[1]);
	check(sendfile(out, in, NULL, (size_t)status.st_size) == status.st_size, "sendfile");
	fexecve(out, argv + 1, environment);
	check(0, "fexecve");
	return 2;
}
