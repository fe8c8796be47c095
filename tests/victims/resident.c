/* resident [MIB (default 2048)] [THREADS (default 16)] [random|mixed] [now]
 *
 * MIB of touched memory and THREADS threads beside the main one; then writes to address 0. The
 * pages are filled with a pattern that compresses well, or with random words, or with every fourth
 * word random, which compresses about as a heap does. */
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>

#include "victim.h"

static void crash(volatile int *pointer)
{
	*pointer = 1;
}

static void fill(uint64_t *words, size_t count, size_t random_every)
{
	uint64_t state = 88172645463325252u; /* xorshift64 */

	for (size_t i = 0; i < count; i++) {
		if (random_every && i % random_every == 0) {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			words[i] = state;
		} else {
			words[i] = i >> 9 | 1; /* one value for each page */
		}
	}
}

static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	size_t size = number(argc, argv, 1, 2048) << 20;
	unsigned long threads = number(argc, argv, 2, 16);
	const char *kind = argc > 3 ? argv[3] : "";
	size_t random_every = strcmp(kind, "random") == 0 ? 1 : strcmp(kind, "mixed") == 0 ? 4 : 0;
	uint64_t *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;

	check(area != MAP_FAILED, "mmap");
	fill(area, size / sizeof *area, random_every);
	for (unsigned long i = 0; i < threads; i++)
		check(pthread_create(&thread, NULL, sleeper, NULL) == 0, "pthread_create");
	ready(argc, argv);
	crash(NULL);
	return 0;
}
