/* SPDX-License-Identifier: Apache-2.0 */
/* Files of one process, opened once: what stays usable when it has gone, and what must be read. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "native.h"

static int open_folder(int pid)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d", pid);
	return open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* A file of a folder of /proc, with a zero behind what fits; false: there is none. */
static bool read_file(int folder, const char *name, char *to, size_t size)
{
	struct bytes text;
	bool whole = read_text(openat(folder, name, O_RDONLY | O_CLOEXEC), size - 1, to, size, &text);

	to[text.size] = 0;
	return whole;
}

/* Whether a thread has not ended: then its exe leads somewhere, and proc_pid_exe(5) says so. */
static bool has_memory(int folder, const char *exe)
{
	char target[1];

	return readlinkat(folder, exe, target, sizeof(target)) >= 0;
}

/*
 * A process whose main thread has ended (pthread_exit(3) in main()) goes on, and /proc/PID describes
 * a zombie without memory or files. /proc/TID of another thread still has both. Returns the folder
 * of such a one, or -1; t->tid is its id.
 */
static int open_other(struct taken *t)
{
	int tasks = openat(t->fds[DIR_FD], "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC), folder = -1;
	DIR *list = tasks < 0 ? NULL : fdopendir(tasks);
	const struct dirent *entry;
	char exe[280], status[4096];

	while (list && folder < 0 && (entry = readdir(list))) {
		int tid = atoi(entry->d_name);

		snprintf(exe, sizeof(exe), "%s/exe", entry->d_name);
		if (tid <= 0 || tid == t->pid || !has_memory(tasks, exe))
			continue;
		folder = open_folder(tid);
		if (folder < 0)
			continue;
		t->tid = tid;
		/* the id may be another process's by now */
		if (!read_file(folder, "status", status, sizeof(status)) ||
		    field(status, "Tgid") != t->pid) {
			close(folder);
			folder = -1;
		}
	}
	if (list)
		closedir(list);
	else
		forget(tasks);
	return folder;
}

static bool open_memory(struct taken *t)
{
	int folder, error;

	t->fds[MEM] = openat(t->fds[DIR_FD], "mem", O_RDONLY | O_CLOEXEC);
	error = t->fds[MEM] < 0 ? errno : 0;
	/* ESRCH says that it has none; older kernels (6.1) open the file even so */
	if ((error && error != ESRCH) || (!error && has_memory(t->fds[DIR_FD], "exe")))
		return !error;
	folder = open_other(t);
	if (folder < 0) {
		errno = error;
		return !error;
	}
	forget(t->fds[MEM]);
	close(t->fds[DIR_FD]);
	t->fds[DIR_FD] = folder;
	t->fds[MEM] = openat(folder, "mem", O_RDONLY | O_CLOEXEC);
	return t->fds[MEM] >= 0;
}

static bool open_files(struct taken *t)
{
	static const struct {
		const char *name;
		int flags;
		bool needed;
	} files[FDS] = {
		[PAGEMAP] = { "pagemap", O_RDONLY, true },
		[ROOT] = { "root", O_PATH, true },
		[EXE] = { "exe", O_PATH, false },
		[MOUNTS] = { "ns/mnt", O_RDONLY, false },
	};

	for (int i = PAGEMAP; i < FDS; i++) {
		t->fds[i] = openat(t->fds[DIR_FD], files[i].name, files[i].flags | O_CLOEXEC);
		if (t->fds[i] < 0 && files[i].needed)
			return because(t, "%s: %s", files[i].name, strerror(errno));
	}
	return true;
}

/* `maps`: its mappings as well, which only /proc tells then. */
static bool read_texts(struct taken *t, bool maps)
{
	static const char *const names[TEXTS] = { "stat",   "status",          "cmdline", "auxv",
						  "cgroup", "coredump_filter", NULL,      "maps" };
	char *area = (char *)(uintptr_t)t->area.at, stat[STAT_SIZE];
	size_t used = t->texts[STAT].size;

	/* of a thread that has the memory: where the arguments are, a zombie does not say */
	if (!read_file(t->fds[DIR_FD], "stat", stat, sizeof(stat)))
		return because(t, "stat cannot be read");
	for (int i = STATUS; i < TEXTS; i++) {
		char *to = i == MAPS ? area + TEXT : area + used;
		size_t room = i == MAPS ? t->area.size / 2 - TEXT : TEXT - used;
		size_t limit = i == CMDLINE ? MAX_CMDLINE : room;

		if ((i == MAPS && !maps) || (i == CMDLINE && !has_arguments(t, stat)))
			continue;
		if (!names[i])
			list_descriptors(t->fds[DIR_FD], to, t->spared ? 0 : room, &t->texts[i]);
		else if (!read_text(openat(t->fds[DIR_FD], names[i], O_RDONLY | O_CLOEXEC), limit,
				    to, room, &t->texts[i]))
			return because(t, "%s cannot be read", names[i]);
		if (i != MAPS)
			used += t->texts[i].size;
	}
	return true;
}

/* RLIMIT_CORE as /proc/PID/limits has it: name, soft limit, hard limit, unit. */
static bool read_core_limit(struct taken *t)
{
	static const char name[] = "Max core file size";
	char text[4096];
	const char *at;

	if (!read_file(t->fds[DIR_FD], "limits", text, sizeof(text)) || !(at = strstr(text, name)))
		return false;
	at += sizeof(name) - 1;
	at += strspn(at, " ");
	t->core_limit = *at == 'u' ? RLIM_INFINITY : strtoull(at, NULL, 10);
	return *at == 'u' || (*at >= '0' && *at <= '9');
}

/* All of a process that its folder has; what is not needed may be missing. */
bool open_process(struct taken *t, bool maps)
{
	char stat[STAT_SIZE];
	struct rlimit limit;
	int own;

	/* one look-up of the pid: all else goes through this directory */
	t->tid = t->pid;
	t->fds[DIR_FD] = open_folder(t->pid);
	if (t->fds[DIR_FD] < 0)
		return because(t, "%s", strerror(errno));
	if (!is_there(t))
		return because(t, "it has gone meanwhile");
	own = openat(t->fds[DIR_FD], "stat", O_RDONLY | O_CLOEXEC);
	if (!read_text(own, TEXT, (char *)(uintptr_t)t->area.at, TEXT, &t->texts[STAT]))
		return because(t, "stat cannot be read");
	t->start_ticks = start_ticks(text_of(t, STAT, stat, sizeof(stat)));
	if (!t->start_ticks)
		return because(t, "stat does not say when it started");
	if (!open_memory(t))
		return because(t, "mem: %s", strerror(errno));
	if (!open_files(t) || !read_texts(t, maps))
		return false;
	/* EPERM: of another user, and we lack CAP_SYS_RESOURCE; the file only wants CAP_SYS_PTRACE */
	if (prlimit(t->pid, RLIMIT_CORE, NULL, &limit))
		return read_core_limit(t) || because(t, "its limits cannot be read");
	t->core_limit = limit.rlim_cur;
	return true;
}
