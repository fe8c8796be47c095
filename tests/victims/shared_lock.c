/* A process that dies while others, which share its memory, keep the lock of that memory: each of
 * them protects a large area again and again. argv[1]: seconds that they last, or longer until all
 * have begun, for that is what the dying one waits for. */
#include "victim.h"
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#define SIZE (8UL << 30) /* of zero pages: only page tables */
#define OTHERS 4

static char *area;
static volatile int working;

static int other(void *seconds)
{
	time_t end = time(NULL) + (long)seconds;

	while (time(NULL) < end || working < 2 * OTHERS) {
		mprotect(area, SIZE, PROT_NONE);
		mprotect(area, SIZE, PROT_READ);
		__sync_fetch_and_add(&working, 1);
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	area = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	check(area != MAP_FAILED, "mmap");
	madvise(area, SIZE, MADV_NOHUGEPAGE);
	check(!madvise(area, SIZE, 22 /* MADV_POPULATE_READ */), "madvise");
	ready(argc, argv);
	for (int i = 0; i < OTHERS; i++)
		check(clone(other, (char *)malloc(1 << 16) + (1 << 16), CLONE_VM | CLONE_FS | CLONE_FILES,
			    (void *)number(argc, argv, 1, 60)) > 0, "clone");
	while (working < 2 * OTHERS)
		usleep(1000);
	abort();
}
