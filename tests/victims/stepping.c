/* stepping: threads that count in r12 and at the top of their stack alike, and sleep 50 us after each
 * step. */
#include <pthread.h>
#include <time.h>

#include "victim.h"

static void *step(void *unused)
{
	static const struct timespec nap = { .tv_nsec = 50000 };

	__asm__ volatile("xor %%r12, %%r12\n"
			 "push %%r12\n"
			 "1: inc %%r12\n"
			 "mov %%r12, (%%rsp)\n"
			 "mov $35, %%eax\n" /* nanosleep */
			 "mov %0, %%rdi\n"
			 "xor %%esi, %%esi\n"
			 "syscall\n"
			 "jmp 1b"
			 :
			 : "r"(&nap)
			 : "memory", "rax", "rcx", "rdi", "rsi", "r11", "r12");
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	for (int i = 0; i < 8; i++) {
		check(pthread_create(&thread, NULL, step, NULL) == 0, "pthread_create");
		pthread_setname_np(thread, "step");
	}
	ready(argc, argv);
	return 0;
}
