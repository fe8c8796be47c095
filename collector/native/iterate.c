/* SPDX-License-Identifier: Apache-2.0 */
/* Threads and mappings: iter/task and iter/task_vma (BPF_LINK_CREATE, BPF_ITER_CREATE). */
#include <errno.h>
#include <linux/bpf.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native.h"

#define AGAIN_MAX 10         /* the program had no memory of its own at that moment */

/* `single`: of one thread, else of a thread group. Returns a descriptor. */
static int open_iterator(int program, int pid, bool single)
{
	union bpf_iter_link_info info = { 0 };
	union bpf_attr attr = { 0 };
	int link, iterator;

	if (single)
		info.task.tid = (uint32_t)pid;
	else
		info.task.pid = (uint32_t)pid;
	attr.link_create.prog_fd = (uint32_t)program;
	attr.link_create.attach_type = BPF_TRACE_ITER;
	attr.link_create.iter_info = (uintptr_t)&info;
	attr.link_create.iter_info_len = sizeof(info);
	link = (int)syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof(attr));
	if (link < 0)
		return -1;
	memset(&attr, 0, sizeof(attr));
	attr.iter_create.link_fd = (uint32_t)link;
	iterator = (int)syscall(SYS_bpf, BPF_ITER_CREATE, &attr, sizeof(attr));
	close(link);
	return iterator;
}

/* All that an iterator says, at `to`, of which `room` bytes are free; nothing if that is not all. */
struct bytes iterate(int program, int pid, bool single, char *to, size_t room)
{
	int iterator = open_iterator(program, pid, single);
	uint64_t start, last = 0;
	size_t size = 0;
	int again = 0;
	ssize_t got = -1;

	while (iterator >= 0 && room - size >= CHUNK) {
		got = read(iterator, to + size, CHUNK);
		if (got < 0 && errno == EAGAIN && again++ < AGAIN_MAX)
			continue;
		if (got <= 0)
			break;
		if (single && (size_t)got >= sizeof(struct cw_mapping)) {
			/* the kernel tells the last buffer again and again instead of ending */
			memcpy(&start, to + size + offsetof(struct cw_mapping, start), sizeof(start));
			if (size && start <= last) {
				got = 0;
				break;
			}
			last = start;
		}
		size += (size_t)got;
	}
	forget(iterator);
	return (struct bytes){ (uintptr_t)to, got ? 0 : size };
}
