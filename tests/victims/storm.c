/* Kills as many children of its own as it is told, as fast as it can; by a signal, or SIGKILL. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define AT_ONCE 50

int main(int argc, char **argv)
{
	int number = argc > 2 ? atoi(argv[2]) : SIGKILL;
	pid_t child[AT_ONCE];

	for (int left = argc > 1 ? atoi(argv[1]) : AT_ONCE; left > 0; left -= AT_ONCE) {
		for (int i = 0; i < AT_ONCE; i++) {
			child[i] = fork();
			while (!child[i])
				pause();
		}
		for (int i = 0; i < AT_ONCE; i++)
			kill(child[i], number);
		while (wait(0) > 0)
			;
	}
	return 0;
}
