// A debugger that comes and goes: live_tracer FILE PID. It stops all threads of PID for a moment, again
// and again, unless somebody else traces them; FILE gets the two numbers of `report`.
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "victim.h"

static struct {
	uint64_t turns, wrong; // threads that it stopped
} volatile *report;

static void stop(pid_t tid)
{
	if (ptrace(PTRACE_SEIZE, tid, 0, 0))
		return;
	if (!ptrace(PTRACE_INTERRUPT, tid, 0, 0) && waitpid(tid, NULL, __WALL) == tid)
		report->turns++;
	if (ptrace(PTRACE_DETACH, tid, 0, 0))
		report->wrong++;
}

int main(int argc, char **argv)
{
	int file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
	char folder[64];

	(void)argc;
	check(file >= 0 && ftruncate(file, sizeof *report) == 0, "report");
	report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	check(report != MAP_FAILED, "mmap");
	check(write(STDOUT_FILENO, "ready\n", 6) == 6, "ready");
	snprintf(folder, sizeof folder, "/proc/%s/task", argv[2]);
	for (;;) {
		DIR *tasks = opendir(folder);
		struct dirent *entry;

		check(tasks != NULL, "opendir");
		while ((entry = readdir(tasks)))
			if (atoi(entry->d_name))
				stop(atoi(entry->d_name));
		closedir(tasks);
	}
}
