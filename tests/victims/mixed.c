/* One mapping of each kind and 50 threads, to compare two cores of the same process.
 *
 *     mixed FILE [now]
 *
 * FILE is created with 16 pages and mapped three times: private and modified, private and
 * unmodified, shared. Beside these: anonymous memory partly touched, shared anonymous memory, a
 * memfd, MADV_DONTDUMP, PROT_NONE guard pages, transparent huge pages, and a hugetlb page where
 * the machine has one. Dies by writing to address 0. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

#include "victim.h"

enum { PAGE = 4096, PAGES = 16, SIZE = PAGE * PAGES, HUGE = 2 << 20, THREADS = 50 };

static pthread_barrier_t started;

static void crash(volatile int *pointer)
{
	*pointer = 1;
}

static char *map(size_t size, int protection, int flags, int fd)
{
	char *area = mmap(NULL, size, protection, flags, fd, 0);

	check(area != MAP_FAILED, "mmap");
	return area;
}

static void mark(char *area, size_t size, char value)
{
	for (size_t i = 0; i < size; i += 3 * PAGE) /* holes between */
		memset(area + i, value, PAGE);
}

static void map_file(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	char page[PAGE];

	check(fd >= 0, path);
	for (int i = 0; i < PAGES; i++) {
		memset(page, 'a' + i, PAGE);
		check(write(fd, page, PAGE) == PAGE, path);
	}
	mark(map(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd), SIZE, 'P');
	map(SIZE, PROT_READ, MAP_PRIVATE, fd);
	mark(map(SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd), PAGE, 'S');
	close(fd);
}

static void map_memory(void)
{
	const int rw = PROT_READ | PROT_WRITE, private = MAP_PRIVATE | MAP_ANONYMOUS;
	int fd = memfd_create("mixed", MFD_CLOEXEC);
	char *secret, *guarded, *huge;

	mark(map(SIZE, rw, private, -1), SIZE, 'A');
	mark(map(SIZE, rw, MAP_SHARED | MAP_ANONYMOUS, -1), SIZE, 'B');
	check(fd >= 0 && ftruncate(fd, SIZE) == 0, "memfd");
	mark(map(SIZE, rw, MAP_SHARED, fd), SIZE, 'M');
	secret = map(SIZE, rw, private, -1);
	mark(secret, SIZE, 'D');
	check(madvise(secret, SIZE, MADV_DONTDUMP) == 0, "MADV_DONTDUMP");
	guarded = map(3 * PAGE, PROT_NONE, private, -1);
	check(mprotect(guarded + PAGE, PAGE, rw) == 0, "mprotect");
	memset(guarded + PAGE, 'G', PAGE);
	huge = map(3 * HUGE, rw, private, -1);
	madvise(huge, 3 * HUGE, MADV_HUGEPAGE); /* refused by kernels without THP: 4 KiB pages */
	mark(huge, 3 * HUGE, 'H');
	huge = mmap(NULL, HUGE, rw, private | MAP_HUGETLB, -1, 0);
	if (huge != MAP_FAILED)
		memset(huge, 'T', PAGE);
}

static void *sleeper(void *unused)
{
	pthread_barrier_wait(&started);
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	if (argc < 2)
		return 2;
	map_file(argv[1]);
	map_memory();
	pthread_barrier_init(&started, NULL, THREADS + 1);
	for (int i = 0; i < THREADS; i++)
		check(pthread_create(&thread, NULL, sleeper, NULL) == 0, "pthread_create");
	pthread_barrier_wait(&started);
	ready(argc, argv);
	crash(NULL);
	return 0;
}
