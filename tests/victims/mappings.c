/* mappings [N (default 50000)] [now]: N separate one-page mappings, then writes to address 0. */
#include <sys/mman.h>

#include "victim.h"

static void crash(volatile int *pointer)
{
	*pointer = 1;
}

int main(int argc, char **argv)
{
	unsigned long count = number(argc, argv, 1, 50000);
	char *area = mmap(NULL, count * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	check(area != MAP_FAILED, "mmap");
	for (unsigned long i = 0; i < count; i++) {
		if (i % 16 == 0)
			area[i * 4096] = 1;
		/* every second page read-only, so that no two are one mapping */
		if (i % 2)
			check(mprotect(area + i * 4096, 4096, PROT_READ) == 0, "mprotect");
	}
	ready(argc, argv);
	crash(NULL);
	return 0;
}
