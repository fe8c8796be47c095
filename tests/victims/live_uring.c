// Uses io_uring(7) with a polling thread of the kernel, and has a worker of it wait in a read of a pipe.
// argv[1] is a file that gets the two numbers of `report`: requests done, and those that went wrong.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "victim.h"

static struct {
	uint64_t turns, wrong;
} volatile *report;
static struct io_uring_params params = {.flags = IORING_SETUP_SQPOLL, .sq_thread_idle = 1};
static int ring;
static char *queue;
static struct io_uring_sqe *entries;

static uint32_t *word(uint32_t offset)
{
	return (uint32_t *)(queue + offset);
}

static void submit(struct io_uring_sqe entry)
{
	uint32_t tail = *word(params.sq_off.tail), slot = tail & *word(params.sq_off.ring_mask);

	entries[slot] = entry;
	word(params.sq_off.array)[slot] = slot;
	__atomic_store_n(word(params.sq_off.tail), tail + 1, __ATOMIC_SEQ_CST);
	check(syscall(SYS_io_uring_enter, ring, 1, 0, IORING_ENTER_SQ_WAKEUP, NULL, 0) >= 0, "enter");
}

// Whether the next request that is done is this one.
static int done(uint64_t which)
{
	uint32_t head = *word(params.cq_off.head);
	struct io_uring_cqe *found = (void *)word(params.cq_off.cqes);

	while (__atomic_load_n(word(params.cq_off.tail), __ATOMIC_ACQUIRE) == head)
		usleep(100);
	found += head & *word(params.cq_off.ring_mask);
	int right = found->user_data == which && found->res == 0;
	__atomic_store_n(word(params.cq_off.head), head + 1, __ATOMIC_RELEASE);
	return right;
}

int main(int argc, char **argv)
{
	static char byte;
	int ends[2], file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);

	(void)argc;
	ring = syscall(SYS_io_uring_setup, 8, &params);
	check(ring >= 0, "io_uring_setup");
	check(file >= 0 && ftruncate(file, sizeof *report) == 0 && pipe(ends) == 0, "report");
	report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	queue = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe) + 4096,
		     PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	entries = mmap(NULL, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED,
		       ring, IORING_OFF_SQES);
	check(report != MAP_FAILED && queue != MAP_FAILED && entries != MAP_FAILED, "mmap");
	submit((struct io_uring_sqe){.opcode = IORING_OP_READ, .flags = IOSQE_ASYNC, .fd = ends[0],
				     .addr = (uint64_t)&byte, .len = 1, .user_data = 1 << 20});
	check(write(STDOUT_FILENO, "ready\n", 6) == 6, "ready");
	for (;;) {
		submit((struct io_uring_sqe){.opcode = IORING_OP_NOP, .user_data = report->turns});
		if (!done(report->turns))
			report->wrong++;
		report->turns++;
		usleep(5000);
	}
}
