// What a snapshot might break, checked all the time; argv[1] is a file that gets the two numbers of
// `report`. A thread counts in restartable sequences (rseq(2)), which the kernel must abort when it is
// taken out of one; another takes a robust mutex, and its list must stay as it is; a device is mapped.
#include <fcntl.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/syscall.h>

#include "victim.h"

static struct {
	uint64_t turns, wrong;
} volatile *report;
static volatile uint64_t counts[1024]; // by CPU; together as many as `done` says
static volatile uint64_t done[2];
static atomic_int hold, held;

// Add one to this CPU's number, in a section that is begun again after an interruption.
static int add_here(volatile struct rseq *area)
{
	uint32_t cpu = area->cpu_id_start;

	__asm__ goto volatile(
		".pushsection __rseq_cs, \"aw\"; .balign 32\n"
		"3: .long 0, 0; .quad 1f, 2f - 1f, 4f\n"
		".popsection\n"
		"leaq 3b(%%rip), %%rax; movq %%rax, %c[cs](%[area])\n"
		"1: cmpl %[cpu], %c[id](%[area]); jnz 4f\n"
		"movq (%[count]), %%rax; movl $3000, %%ecx\n"
		"5: decl %%ecx; jnz 5b\n"
		"incq %%rax; movq %%rax, (%[count])\n"
		"2: jmp %l[out]\n"
		".long 0x53053053\n" // RSEQ_SIG, before the place where aborted ones go on
		"4: jmp %l[aborted]"
		:
		: [area] "r"(area), [cpu] "r"(cpu), [count] "r"(&counts[cpu]),
		  [cs] "i"(__builtin_offsetof(struct rseq, rseq_cs)),
		  [id] "i"(__builtin_offsetof(struct rseq, cpu_id))
		: "rax", "rcx", "memory", "cc"
		: aborted, out);
out:
	area->rseq_cs = 0;
	return 1;
aborted:
	area->rseq_cs = 0;
	return 0;
}

static void *sequences(void *mine)
{
	volatile struct rseq *area = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);

	for (;;) {
		*(volatile uint64_t *)mine += add_here(area);
		if (hold) {
			held++;
			while (hold)
				usleep(100);
			held--;
		}
	}
	return NULL;
}

// Whether each addition has been made once: while nobody adds.
static int is_right(void)
{
	uint64_t sum = 0;

	hold = 1;
	while (held != 2)
		usleep(100);
	for (int i = 0; i < 1024; i++)
		sum += counts[i];
	sum -= done[0] + done[1];
	hold = 0;
	while (held)
		usleep(100);
	return sum == 0;
}

static void *robust(void *mutex)
{
	void *before, *after;
	size_t size;

	check(syscall(SYS_get_robust_list, 0, &before, &size) == 0, "robust list");
	for (;;) {
		if (pthread_mutex_lock(mutex))
			report->wrong++;
		if (syscall(SYS_get_robust_list, 0, &after, &size) || after != before)
			report->wrong++;
		if (pthread_mutex_unlock(mutex))
			report->wrong++;
		usleep(500);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static pthread_mutex_t mutex;
	pthread_mutexattr_t attributes;
	pthread_t thread;
	int file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
	struct perf_event_attr clock = {.type = PERF_TYPE_SOFTWARE, .size = sizeof clock,
					.config = PERF_COUNT_SW_TASK_CLOCK};
	struct perf_event_mmap_page *device;
	int event = syscall(SYS_perf_event_open, &clock, 0, -1, -1, 0);

	(void)argc;
	check(file >= 0 && ftruncate(file, sizeof *report) == 0, "report");
	report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	device = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, event, 0);
	check(report != MAP_FAILED && device != MAP_FAILED, "mmap");
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&mutex, &attributes);
	for (int i = 0; i < 2; i++)
		check(pthread_create(&thread, NULL, sequences, (void *)&done[i]) == 0, "thread");
	check(pthread_create(&thread, NULL, robust, &mutex) == 0, "thread");
	check(write(STDOUT_FILENO, "ready\n", 6) == 6, "ready");
	for (;;) {
		usleep(5000);
		if (device->data_size != 4096 || !is_right())
			report->wrong++;
		report->turns++;
	}
}
