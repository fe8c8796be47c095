/* abort() with a large heap: MIB of touched memory (default 256), as a check of an invariant does.
 *
 *     heap_abort [MIB] [now]
 *
 * Prints "ready" when the heap is filled, waits for a newline on stdin, then dies by SIGABRT. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check_invariant(const unsigned char *heap, size_t size)
{
	if (heap[size / 2] != 0)
		abort();
}

static void run(size_t size)
{
	unsigned char *heap = malloc(size);

	if (!heap)
		exit(2);
	for (size_t i = 0; i < size; i += 4096)
		memset(heap + i, 1 + (int)(i >> 12) % 255, 4096);
	puts("ready");
	fflush(stdout);
	getchar();
	check_invariant(heap, size);
}

int main(int argc, char **argv)
{
	size_t mib = 256;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "now") == 0)
			freopen("/dev/zero", "r", stdin);
		else
			mib = strtoul(argv[i], NULL, 10);
	}
	run(mib << 20);
	return 0;
}
