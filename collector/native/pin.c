/* SPDX-License-Identifier: Apache-2.0 */
/* The pin: see pin.py, which makes them ready and lets them go. */
#include <aio.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "native.h"

#define RSP 19               /* in struct user_regs_struct */

/* An address that can be read: of its program headers, its vdso or a stack; 0: none. */
uint64_t readable(struct taken *t)
{
	const struct cw_thread *first = (const struct cw_thread *)(uintptr_t)t->threads.at;
	uint64_t found[3] = { 0 }, entry[2], probe;

	if (t->threads.size >= sizeof(*first))
		found[2] = first->regs[RSP];
	for (size_t at = 0; at + sizeof(entry) <= t->texts[AUXV].size; at += sizeof(entry)) {
		memcpy(entry, (char *)(uintptr_t)t->texts[AUXV].at + at, sizeof(entry));
		if (entry[0] == AT_PHDR || entry[0] == AT_SYSINFO_EHDR)
			found[entry[0] == AT_SYSINFO_EHDR] = entry[1];
	}
	for (size_t i = 0; i < 3; i++)
		if (found[i] && resident(t, found[i], sizeof(probe)) &&
		    pread(t->fds[MEM], &probe, sizeof(probe), (off_t)found[i]) == sizeof(probe))
			return found[i];
	return 0;
}

bool pin_memory(struct orders *o, struct taken *t)
{
	uint64_t event[4] = { 0 };
	struct aiocb *request;
	struct pollfd ready;

	for (int i = 0; t->address && i < PINS && t->pin < 0; i++) {
		int32_t is = READY;

		if (atomic_compare_exchange_strong(&o->pins[i].state, &is, TAKEN))
			t->pin = i;
	}
	if (t->pin < 0)
		return false;
	/* glibc queues requests on the same descriptor, so each pin keeps one of its own */
	t->pin_fd = fcntl(t->fds[MEM], F_DUPFD_CLOEXEC, 0);
	request = (struct aiocb *)(uintptr_t)o->pins[t->pin].request;
	memset(request, 0, sizeof(*request));
	request->aio_fildes = t->pin_fd;
	request->aio_buf = (void *)(uintptr_t)o->pins[t->pin].page;
	request->aio_nbytes = 8;
	request->aio_offset = (off_t)t->address;
	request->aio_sigevent.sigev_notify = SIGEV_NONE;
	if (t->pin_fd < 0 || aio_read(request))
		return false;
	t->begun = 1;
	ready = (struct pollfd){ o->pins[t->pin].uffd, POLLIN, 0 };
	return poll(&ready, 1, PIN_MS) == 1 &&
	       read(o->pins[t->pin].uffd, event, sizeof(event)) == sizeof(event) &&
	       (event[0] & 0xFF) == 0x12 /* UFFD_EVENT_PAGEFAULT */;
}

/* Take a pin back that was begun, and make its page as new. May wait as long as its read does. */
void unpin(struct orders *o, struct taken *t)
{
	struct pin *pin;
	const struct aiocb *request;
	struct uffdio_zeropage zero = { 0 };

	if (t->pin < 0)
		return;
	pin = &o->pins[t->pin];
	request = (const struct aiocb *)(uintptr_t)pin->request;
	if (t->begun) {
		zero.range.start = pin->page;
		zero.range.len = CW_PAGE;
		ioctl(pin->uffd, UFFDIO_ZEROPAGE, &zero);
		while (aio_error(request) == EINPROGRESS)
			aio_suspend(&request, 1, NULL);
		aio_return((struct aiocb *)(uintptr_t)pin->request);
		madvise((void *)(uintptr_t)pin->page, CW_PAGE, MADV_DONTNEED);
	}
	forget(t->pin_fd);
	pin->state = READY;
	t->pin = t->pin_fd = -1;
}
