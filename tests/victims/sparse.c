/* sparse anon MIB PARTS [now]    reserves MIB of memory and touches the first page of each part
 * sparse file MIB FILE [now]     maps FILE privately, MIB long, and writes its second page
 *
 * Both at 0x100000000000. Then writes to address 0. */
#include <fcntl.h>
#include <sys/mman.h>

#include "victim.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define PLACE ((char *)0x100000000000)

static void crash(volatile int *pointer)
{
	*pointer = 1;
}

int main(int argc, char **argv)
{
	size_t size = number(argc, argv, 2, 0) << 20;
	int flags = MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
	size_t parts = number(argc, argv, 3, 64);
	char *area;

	if (argc > 3 && strcmp(argv[1], "file") == 0) {
		int fd = open(argv[3], O_RDWR);

		check(fd >= 0, "open");
		area = mmap(PLACE, size, PROT_READ | PROT_WRITE, flags, fd, 0);
		check(area == PLACE, "mmap");
		area[4096] = 1;
	} else {
		area = mmap(PLACE, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
		check(area == PLACE, "mmap");
		for (size_t i = 0; i < parts; i++)
			area[i * (size / parts)] = 1 + i;
	}
	ready(argc, argv);
	crash(NULL);
	return 0;
}
