/* heap [grow|broken]: a heap of known contents, then it waits.
 *
 * The main arena: 1,000 pieces of 1,000 bytes and 10 of 100,000, and 100 of 1,000 of which every other one
 * was given back, seven of them to the thread's cache. Another thread's arena: 15,000 pieces of 5,000
 * bytes, in two heaps. Three pieces of 4 MiB have mappings of their own.
 * grow: then it takes more until it is killed. broken: the size of one chunk is a lie. */
#include <pthread.h>

#include "victim.h"

enum { THOUSANDS = 1000, PAIRS = 50, LARGE = 10, OF_THREAD = 15000, MAPPED = 3 };

static void *kept[1 << 16];
static void *back[2 * PAIRS];
static int used;

static void take(size_t size)
{
	void *piece = malloc(size);

	check(piece != NULL, "malloc");
	memset(piece, 0x5a, size);
	kept[used++] = piece;
}

static void *in_thread(void *go)
{
	for (int i = 0; i < OF_THREAD; i++)
		take(5000);
	pthread_barrier_wait(go);
	pause();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_barrier_t done;
	pthread_t thread;

	for (int i = 0; i < THOUSANDS; i++)
		take(1000);
	for (int i = 0; i < LARGE; i++)
		take(100000);
	/* each beside one that stays in use, so that none grows together with another */
	for (int i = 0; i < 2 * PAIRS; i++)
		back[i] = malloc(1000);
	for (int i = 0; i < 2 * PAIRS; i += 2)
		free(back[i]);
	for (int i = 0; i < MAPPED; i++)
		take(4 << 20);
	pthread_barrier_init(&done, NULL, 2);
	check(!pthread_create(&thread, NULL, in_thread, &done), "pthread_create");
	pthread_barrier_wait(&done);
	if (argc > 1 && !strcmp(argv[1], "broken"))
		((size_t *)kept[THOUSANDS / 2])[-1] = 0x7ffffffffff1;
	ready(argc, argv);
	while (argc > 1 && !strcmp(argv[1], "grow"))
		take(100000);
	_exit(0);
}
