/* Crashes inside new pid and mount namespaces, from a file that exists only there.
 *
 *     namespace DIRECTORY PROGRAM [ARGUMENTS...]
 *
 * Mounts a private tmpfs on DIRECTORY, copies PROGRAM into it and runs the copy as pid 2 of the
 * namespace (pid 1 cannot die of its own signals). Needs root. Exits as PROGRAM did: with its
 * status, or with 128 + its signal. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "victim.h"

static void copy(const char *from, const char *to)
{
	struct stat status;
	int in = open(from, O_RDONLY | O_CLOEXEC), out;

	check(in >= 0 && fstat(in, &status) == 0, from);
	out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
	check(out >= 0, to);
	check(sendfile(out, in, NULL, (size_t)status.st_size) == status.st_size, "sendfile");
	close(out);
	close(in);
}

static int status_of(pid_t child)
{
	int status;

	check(waitpid(child, &status, 0) == child, "waitpid");
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int inside(const char *directory, char **arguments)
{
	const char *slash = strrchr(arguments[0], '/');
	char inner[4096];
	pid_t child;

	check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private mounts");
	check(mount("victim", directory, "tmpfs", 0, NULL) == 0, "tmpfs");
	snprintf(inner, sizeof inner, "%s/%s", directory, slash ? slash + 1 : arguments[0]);
	copy(arguments[0], inner);
	child = fork();
	check(child >= 0, "fork");
	if (child == 0) {
		execv(inner, arguments);
		_exit(2);
	}
	return status_of(child);
}

int main(int argc, char **argv)
{
	pid_t child;

	if (argc < 3)
		return 2;
	check(unshare(CLONE_NEWPID | CLONE_NEWNS) == 0, "unshare");
	child = fork();
	check(child >= 0, "fork");
	if (child == 0)
		_exit(inside(argv[1], argv + 2));
	return status_of(child);
}
