/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program of system calls alone, which begins at report(). With -DCOREWARD_LIBC it is an ordinary
 * one, for architectures that have no _start here.
 */
#ifndef COREWARD_LIBCLESS_H
#define COREWARD_LIBCLESS_H

#include <asm/unistd.h>

/* Its exit status. */
static int report(long argc, char **argv);

#ifdef COREWARD_LIBC
#include <errno.h>
#include <unistd.h>
static long call(long n, long a, long b, long c, long d, long e)
{
	long r = syscall(n, a, b, c, d, e);

	return r < 0 ? -errno : r;
}
#elif defined(__x86_64__)
static long call(long n, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long r;

	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start:\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call start\n");
#else
#error "build with -DCOREWARD_LIBC on this architecture"
#endif
#define CALL(name, a, b, c, d, e) \
	call(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

#ifdef COREWARD_LIBC
int main(int argc, char **argv)
{
	return report(argc, argv);
}
#else
__attribute__((noreturn, used)) void start(long *stack)
{
	long status = report(stack[0], (char **)(stack + 1));

	for (;;)
		CALL(exit_group, status, 0, 0, 0, 0);
}
#endif

#endif
