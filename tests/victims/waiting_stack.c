/* waiting_stack: sleeps, with a stack pointer to memory that keeps whoever touches it waiting
 * (userfaultfd(2), answered by nobody). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "victim.h"

enum { PAGE = 4096 };

int main(int argc, char **argv)
{
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { (uintptr_t)page, PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	check(uffd >= 0 && page != MAP_FAILED && ioctl(uffd, UFFDIO_API, &api) == 0 &&
		      ioctl(uffd, UFFDIO_REGISTER, &range) == 0,
	      "userfaultfd");
	ready(argc, argv);
	__asm__ volatile("mov %0, %%rsp\n"
			 "1: mov %1, %%eax\n"
			 "syscall\n"
			 "jmp 1b"
			 :
			 : "r"(page + PAGE / 2), "i"(SYS_pause)
			 : "memory");
	return 1;
}
