/* probe_registers THREADS: threads that sleep in pause() with different extended registers.
 *
 * Every third thread has touched none of them, so that initial states are seen as well. Maps a
 * file, shared anonymous memory, an unlinked file, a memfd, DONTDUMP memory and a guard page. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>

#include "victim.h"

static pthread_barrier_t started;

static void set_registers(long number)
{
	char vector[32];
	uint32_t control = 0x1f80 | (number & 1 ? 0x8000 : 0); /* MXCSR: flush to zero */
	double value = (double)number + 0.5;

	memset(vector, (int)number, sizeof vector);
	__asm__ volatile("vmovdqu %0, %%ymm3\n"
			 "vmovdqu %0, %%ymm14\n"
			 "ldmxcsr %1\n"
			 "fldl %2\n" ::"m"(vector), "m"(control), "m"(value)
			 : "xmm3", "xmm14");
	if (__builtin_cpu_supports("avx512f"))
		__asm__ volatile("vpbroadcastd %%xmm3, %%zmm21\n kmovw %0, %%k3" ::"r"(control));
}

static void *sleeper(void *argument)
{
	long number = (long)argument;

	pthread_barrier_wait(&started);
	if (number % 3)
		set_registers(number);
	for (;;)
		pause();
	return NULL;
}

static void map_things(void)
{
	const size_t size = 1 << 16;
	char *memory;
	int file;

	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED, "shared");
	memory[0] = 1;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED && madvise(memory, size, MADV_DONTDUMP) == 0, "dontdump");
	check(mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED, "guard");
	file = memfd_create("a memfd", 0);
	check(file >= 0 && ftruncate(file, (off_t)size) == 0, "memfd");
	check(mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0) != MAP_FAILED, "memfd");
	file = open("an unlinked\nfile", O_RDWR | O_CREAT, 0600);
	check(file >= 0 && ftruncate(file, (off_t)size) == 0, "file");
	check(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 4096) != MAP_FAILED, "file");
	check(unlink("an unlinked\nfile") == 0, "unlink");
	file = open("a file with\nlines", O_RDWR | O_CREAT, 0600);
	check(file >= 0 && ftruncate(file, (off_t)size) == 0, "file");
	check(mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0) != MAP_FAILED, "file");
}

int main(int argc, char **argv)
{
	unsigned long threads = number(argc, argv, 1, 20);
	pthread_t thread;

	map_things();
	pthread_barrier_init(&started, NULL, (unsigned)threads + 1);
	for (unsigned long i = 0; i < threads; i++)
		check(pthread_create(&thread, NULL, sleeper, (void *)i) == 0, "pthread_create");
	pthread_barrier_wait(&started);
	ready(argc, argv);
	return 0;
}
