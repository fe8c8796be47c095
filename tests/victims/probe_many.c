/* probe_many N: N children die by SIGKILL, one after the other. */
#include <signal.h>
#include <sys/wait.h>

#include "victim.h"

int main(int argc, char **argv)
{
	unsigned long deaths = number(argc, argv, 1, 1);

	ready(argc, argv);
	for (unsigned long i = 0; i < deaths; i++) {
		pid_t child = fork();

		check(child >= 0, "fork");
		if (child == 0)
			raise(SIGKILL);
		check(waitpid(child, NULL, 0) == child, "waitpid");
	}
	return 0;
}
