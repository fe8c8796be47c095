/* A process that dies in the memory of another one. argv[1]: "vfork", where the other one waits until
 * it has died; "clone", where it goes on. Both change `value` when it has: 1 is what the dead one saw.
 * The other one then waits for its input to end. */
#include "victim.h"
#include <sched.h>
#include <sys/wait.h>

volatile int value = 1;

static int child(void *unused)
{
	(void)unused;
	*(volatile int *)0 = 1;
	return 0;
}

int main(int argc, char **argv)
{
	int is_vfork = argc > 1 && !strcmp(argv[1], "vfork"), flags = CLONE_VM | SIGCHLD;
	char *stack = malloc(1 << 16), text[32], byte;
	pid_t pid;

	ready(argc, argv);
	pid = clone(child, stack + (1 << 16), is_vfork ? flags | CLONE_VFORK : flags, NULL);
	check(pid > 0, "clone");
	if (is_vfork)
		value = 2;
	check(waitpid(pid, NULL, 0) == pid, "waitpid");
	value = 3;
	check(write(STDOUT_FILENO, text, (size_t)sprintf(text, "%d\n", pid)) > 0, "write");
	return read(STDIN_FILENO, &byte, 1) < 0;
}
