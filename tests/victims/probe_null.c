/* probe_null main|worker: writes to address 0 at a known instruction, with known registers.
 *
 * Says on stderr: address of the instruction, address of a pattern on the stack, thread id. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <sys/syscall.h>

#include "victim.h"

extern const char probe_null_here[];

static int count;
static char **arguments;

static void *crash(void *unused)
{
	volatile char pattern[] = "a pattern on the stack of the dying thread";

	fprintf(stderr, "%p %p %ld\n", (const void *)probe_null_here, (void *)pattern,
		syscall(SYS_gettid));
	ready(count, arguments);
	__asm__ volatile("movabsq $0x1122334455667788, %%r15\n"
			 "movabsq $0x99aabbccddeeff00, %%r12\n"
			 "xorl %%eax, %%eax\n"
			 "probe_null_here: movl $1, 0x10(%%rax)\n" ::: "rax", "r12", "r15", "memory");
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	count = argc;
	arguments = argv;
	if (argc < 2 || strcmp(argv[1], "worker"))
		return crash(NULL) != NULL;
	check(pthread_create(&thread, NULL, crash, NULL) == 0, "pthread_create");
	pthread_join(thread, NULL);
	return 0;
}
