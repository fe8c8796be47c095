/* mapped_paths COUNT FILE...: the first page of the files, in turn, COUNT times in all, each a mapping
 * of its own and opened anew; then writes to address 0. */
#include <fcntl.h>
#include <sys/mman.h>

#include "victim.h"

static void crash(volatile int *pointer)
{
	*pointer = 1;
}

int main(int argc, char **argv)
{
	unsigned long count = number(argc, argv, 1, 0);

	for (unsigned long i = 0; i < count; i++) {
		int fd = open(argv[2 + i % (argc - 2)], O_RDONLY);

		check(fd >= 0, "open");
		check(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0) != MAP_FAILED, "mmap");
		close(fd);
	}
	ready(argc, argv);
	crash(NULL);
	return 0;
}
