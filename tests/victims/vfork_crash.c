/* vfork_crash [MIB (default 16)]: a parent with MIB of touched memory. For each line of its input a
 * child of vfork(2) dies in that memory; then it prints the child's pid, for how many nanoseconds it
 * was kept in vfork(2), and where the memory is. It has changed each page by then, from 1 to 2. */
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "victim.h"

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void fill(uint64_t *words, size_t size, uint64_t with)
{
	for (size_t i = 0; i < size / sizeof(*words); i += 512)
		words[i] = with;
}

int main(int argc, char **argv)
{
	size_t size = number(argc, argv, 1, 16) << 20;
	uint64_t *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char byte;

	check(area != MAP_FAILED, "mmap");
	for (;;) {
		int64_t began, took;
		pid_t pid;

		fill(area, size, 1);
		if (write(STDOUT_FILENO, "ready\n", 6) != 6 || read(STDIN_FILENO, &byte, 1) <= 0)
			return 0;
		began = now();
		pid = vfork();
		if (!pid)
			kill(getpid(), SIGSEGV);
		took = now() - began;
		fill(area, size, 2);
		check(waitpid(pid, NULL, 0) == pid, "waitpid");
		printf("%d %ld %lu\n", pid, (long)took, (unsigned long)area);
		fflush(stdout);
	}
}
