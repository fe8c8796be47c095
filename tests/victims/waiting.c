/* waiting: its arguments, and the list of its robust mutexes, are in memory that keeps whoever
 * touches it waiting (userfaultfd(2), answered by nobody); then it writes to address 0. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "victim.h"

enum { PAGE = 4096 };

/* Not on the main thread: its stack begins where the arguments are. */
static void *crash(void *arguments)
{
	char *page = (char *)((uintptr_t)arguments & ~(uintptr_t)(PAGE - 1));
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { (uintptr_t)page, PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	page = mmap(page, PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	check(uffd >= 0 && page != MAP_FAILED && ioctl(uffd, UFFDIO_API, &api) == 0 &&
		      ioctl(uffd, UFFDIO_REGISTER, &range) == 0,
	      "userfaultfd");
	check(syscall(SYS_set_robust_list, page + 128, 24L) == 0, "set_robust_list");
	ready(1, NULL);
	*(volatile int *)0 = 1;
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	check(argc > 0 && pthread_create(&thread, NULL, crash, argv[0]) == 0, "pthread_create");
	for (;;)
		pause();
}
