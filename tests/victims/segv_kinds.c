/* The other kinds of SIGSEGV: segv_kinds read|readonly|execute|noncanonical [now] */
#include <sys/mman.h>

#include "victim.h"

static int fault_read(const volatile int *pointer)
{
	return *pointer;
}

static void fault_write(volatile int *pointer)
{
	*pointer = 1;
}

static void fault_execute(void (*function)(void))
{
	function();
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";
	void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(page != MAP_FAILED, "mmap");
	ready(argc, argv);
	if (strcmp(kind, "read") == 0)
		return fault_read((int *)0x10);
	if (strcmp(kind, "readonly") == 0)
		fault_write(page);
	if (strcmp(kind, "execute") == 0)
		fault_execute(NULL);
	if (strcmp(kind, "noncanonical") == 0)
		return fault_read((int *)0x4141414141414141);
	return 2;
}
