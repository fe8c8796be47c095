/* Reads a mapped file behind its end: SIGBUS, BUS_ADRERR. */
#include <sys/mman.h>

#include "victim.h"

static int read_mapped(const volatile char *mapped)
{
	return mapped[4096];
}

int main(int argc, char **argv)
{
	FILE *file = tmpfile();
	char *mapped;

	check(file && ftruncate(fileno(file), 8192) == 0, "tmpfile");
	mapped = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fileno(file), 0);
	check(mapped != MAP_FAILED, "mmap");
	check(ftruncate(fileno(file), 4096) == 0, "ftruncate");
	ready(argc, argv);
	return read_mapped(mapped);
}
