/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A helper for core_pattern that does nothing: what is waited for with it is the kernel's own, which
 * starts a process for each crash. Without libc, as the helper that it is compared with; x86-64.
 */
#include <asm/unistd.h>

__attribute__((noreturn)) void _start(void);

void _start(void)
{
	for (;;)
		__asm__ volatile("syscall" : : "a"(__NR_exit_group), "D"(0) : "rcx", "r11", "memory");
}
