/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose share of us a process uses, by the same rule as fill_owner() of bpf/share.bpf.h. A user who
 * makes a user namespace (user_namespaces(7)) has 65,536 ids in it, and may make cgroups: it is still
 * one user. What root has made (a unit, a container) goes by its cgroup.
 */
#include <fcntl.h>
#include <linux/nsfs.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "native.h"

#define NAMESPACES 32        /* levels of user namespaces that the kernel allows */

static struct stat own_users, own_pids;

/* What a file of /proc is; its inode is 0 if it cannot be had. A namespace takes no lock of memory. */
static struct stat look(const char *name, int pid)
{
	struct stat about;
	char path[64];

	snprintf(path, sizeof(path), name, pid);
	if (stat(path, &about))
		about = (struct stat){ 0 };
	return about;
}

static void look_up_own(void)
{
	own_users = look("/proc/%d/ns/user", getpid());
	own_pids = look("/proc/%d/ns/pid", getpid());
}

/* Whether a namespace is our own, or not known to be another. */
static bool is_own(const struct stat *ns, const struct stat *own)
{
	return !ns->st_ino || !own->st_ino ||
	       (ns->st_ino == own->st_ino && ns->st_dev == own->st_dev);
}

/* Who made the outermost of the user namespaces that this one, open as `ns`, lies in. Closes it. */
static uid_t maker(int ns)
{
	uid_t owner = 0;

	for (int step = 0; step < NAMESPACES && ns >= 0; step++) {
		struct stat about;
		int parent;

		ioctl(ns, NS_GET_OWNER_UID, &owner);
		parent = ioctl(ns, NS_GET_PARENT);
		forget(ns);
		ns = parent;
		if (ns >= 0 && (fstat(ns, &about) || is_own(&about, &own_users)))
			break;
	}
	forget(ns);
	return owner;
}

/* A user, or a cgroup and a user (0: root) in it, in one number. cgroup: its id; 0: not known. */
uint64_t owner_of(int pid, uint32_t uid, uint64_t cgroup)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct stat users, pids;
	char path[64];

	pthread_once(&once, look_up_own);
	users = look("/proc/%d/ns/user", pid);
	if (!is_own(&users, &own_users)) {
		snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);
		uid = maker(open(path, O_RDONLY | O_CLOEXEC));
		return uid ? uid : cgroup << 32;
	}
	pids = look("/proc/%d/ns/pid", pid);
	/* other pids than ours, but the same users: a container of root's, with users of its own */
	return uid && is_own(&pids, &own_pids) ? uid : cgroup << 32 | uid;
}
