/* probe_hog MIB: touches that much memory. */
#include <sys/mman.h>

#include "victim.h"

int main(int argc, char **argv)
{
	unsigned long size = number(argc, argv, 1, 64) << 20;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(memory != MAP_FAILED, "mmap");
	ready(argc, argv);
	memset(memory, 1, size);
	return 0;
}
