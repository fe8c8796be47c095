// A process to be snapshot while it lives, which notices if anything is done to it.
//
//     live_target FILE WHAT...
//
// FILE becomes a struct report, shared and up to date at any time. WHAT, in this order of sense:
//     memory:MIB thp:MIB       memory with contents that no two pages share, in small or huge pages
//     seccomp                  a filter that kills the process for fork, wait and userfaultfd
//     dontfork wipeonfork shared    a page each, of that kind
//     lockstep                 a thread that counts in two pages, the second never ahead
//     writer:PAGES             a thread that writes so many random pages of `memory` per ms
//     faults                   a thread that maps, touches and unmaps, and knows how long it took
//     spin:N                   threads that keep values in all registers and look after them
//     futex:N nanosleep:N read:N epoll:N pause:N    threads that block so
// It answers each byte of its standard input with a line, and ends with it:
//     c  "children N", as wait(-1) sees them
//     d  MADV_DONTNEED for the first quarter of `memory`
//     u  unmaps the second quarter, maps it anew and writes its first page
//     m  moves the third quarter away, and its first page back
//     z  MADV_DONTNEED for the last quarter, of which it then reads one page
#include "victim.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <time.h>

#define PAGE 4096ul

struct report {
	_Atomic uint64_t interrupted; // calls that came back with EINTR
	_Atomic uint64_t returned;    // calls that came back otherwise, which none should
	_Atomic uint64_t broken;      // registers, flags or memory that were not as they should be
	_Atomic uint64_t spins, writes, faults;
	_Atomic uint64_t longest_fault; // ns
	uint64_t memory, size;          // where `memory` is
	uint64_t first, second;         // where `lockstep` counts
	uint64_t dontfork, wipeonfork, shared;
};

static struct report *report;

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	return *state ^= *state << 17;
}

struct begin {
	void *(*run)(void *);
	void *argument;
};
static sem_t begun; // a thread has all that it needs, and no signal blocked any more

static void *thread(void *what)
{
	struct begin begin = *(struct begin *)what;

	return begin.run(begin.argument);
}

static void start(void *(*run)(void *), void *argument)
{
	struct begin begin = {run, argument};
	pthread_attr_t small;
	pthread_t id;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 128 << 10);
	check(pthread_create(&id, &small, thread, &begin) == 0, "pthread_create");
	sem_wait(&begun);
}

static void *map(size_t size, int flags)
{
	void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	check(found != MAP_FAILED, "mmap");
	return found;
}

static void fill(uint64_t mib, int advice)
{
	uint64_t huge = 2 << 20, size = mib << 20, state = 88172645463325252ull;
	char *at = map(size + huge, MAP_PRIVATE);

	at = (char *)(((uintptr_t)at + huge - 1) & -huge);
	madvise(at, size, advice);
	for (uint64_t page = 0; page < size; page += PAGE)
		for (uint64_t byte = 0; byte < PAGE; byte += 64)
			*(uint64_t *)(at + page + byte) = next(&state);
	report->memory = (uint64_t)at;
	report->size = size;
}

static void *lockstep(void *unused)
{
	volatile uint64_t *first = (uint64_t *)report->first, *second = (uint64_t *)report->second;

	sem_post(&begun);
	for (;;) {
		++*first;
		++*second;
	}
	return unused;
}

static void *writer(void *rate)
{
	uint64_t state = 2463534242, pages = report->size / PAGE;
	struct timespec pause = {0, 1000000};

	sem_post(&begun);
	for (;;) {
		for (uintptr_t i = 0; i < (uintptr_t)rate; i++) {
			uint64_t value = next(&state);
			((volatile uint64_t *)report->memory)[value % pages * (PAGE / 8) + 1] = value;
		}
		report->writes += (uintptr_t)rate;
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	}
	return NULL;
}

static void *faults(void *unused)
{
	sem_post(&begun);
	for (;;) {
		uint64_t begun = now(), took;
		volatile char *at = map(4 * PAGE, MAP_PRIVATE);

		at[0] = 1;
		munmap((void *)at, 4 * PAGE);
		took = now() - begun;
		if (took > report->longest_fault)
			report->longest_fault = took;
		report->faults++;
		nanosleep(&(struct timespec){0, 50000}, NULL);
	}
	return unused;
}

// Distinct values in all registers but rsp, in xmm0 and xmm15 and in the carry flag; 0 if all of
// them are still there after a while of counting.
__attribute__((naked)) static uint64_t guard(void)
{
	__asm__("push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
		"mov $0x1111111111111111, %rax; movq %rax, %xmm0\n"
		"mov $0x2222222222222222, %rax; movq %rax, %xmm15\n"
		"mov $0xa0a0a0a0a0a0a0a0, %rax; mov $0xb0b0b0b0b0b0b0b0, %rbx\n"
		"mov $0xd0d0d0d0d0d0d0d0, %rdx; mov $0xe0e0e0e0e0e0e0e0, %rsi\n"
		"mov $0xf0f0f0f0f0f0f0f0, %rdi; mov $0x9090909090909090, %rbp\n"
		"mov $0x0808080808080808, %r8;  mov $0x0909090909090909, %r9\n"
		"mov $0x1010101010101010, %r10; mov $0x1212121212121212, %r11\n"
		"mov $0x1313131313131313, %r12; mov $0x1414141414141414, %r13\n"
		"mov $0x1515151515151515, %r14; mov $0x1616161616161616, %r15\n"
		"mov $20000, %ecx\n"
		"stc\n"
		"1: dec %rcx; jnz 1b\n" // leaves the carry alone
		"jnc 9f\n"
		"mov $0xa0a0a0a0a0a0a0a0, %rcx; cmp %rcx, %rax; jne 9f\n"
		"mov $0xb0b0b0b0b0b0b0b0, %rcx; cmp %rcx, %rbx; jne 9f\n"
		"mov $0xd0d0d0d0d0d0d0d0, %rcx; cmp %rcx, %rdx; jne 9f\n"
		"mov $0xe0e0e0e0e0e0e0e0, %rcx; cmp %rcx, %rsi; jne 9f\n"
		"mov $0xf0f0f0f0f0f0f0f0, %rcx; cmp %rcx, %rdi; jne 9f\n"
		"mov $0x9090909090909090, %rcx; cmp %rcx, %rbp; jne 9f\n"
		"mov $0x0808080808080808, %rcx; cmp %rcx, %r8;  jne 9f\n"
		"mov $0x0909090909090909, %rcx; cmp %rcx, %r9;  jne 9f\n"
		"mov $0x1010101010101010, %rcx; cmp %rcx, %r10; jne 9f\n"
		"mov $0x1212121212121212, %rcx; cmp %rcx, %r11; jne 9f\n"
		"mov $0x1313131313131313, %rcx; cmp %rcx, %r12; jne 9f\n"
		"mov $0x1414141414141414, %rcx; cmp %rcx, %r13; jne 9f\n"
		"mov $0x1515151515151515, %rcx; cmp %rcx, %r14; jne 9f\n"
		"mov $0x1616161616161616, %rcx; cmp %rcx, %r15; jne 9f\n"
		"mov $0x1111111111111111, %rcx; movq %xmm0, %rax;  cmp %rcx, %rax; jne 9f\n"
		"mov $0x2222222222222222, %rcx; movq %xmm15, %rax; cmp %rcx, %rax; jne 9f\n"
		"xor %eax, %eax; jmp 8f\n"
		"9: mov $1, %eax\n"
		"8: pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n");
}

static void *spin(void *unused)
{
	sem_post(&begun);
	for (;;) {
		report->broken += guard();
		report->spins++;
	}
	return unused;
}

// A blocked call came back, although nothing for which it waits ever comes.
static void back(long result)
{
	if (result < 0 && errno == EINTR)
		report->interrupted++;
	else
		report->returned++;
}

static void *block_in_futex(void *unused)
{
	uint32_t word = 0;

	sem_post(&begun);
	for (;;)
		back(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0));
	return unused;
}

static void *block_in_nanosleep(void *unused)
{
	sem_post(&begun);
	for (;;)
		back(nanosleep(&(struct timespec){100000, 0}, NULL));
	return unused;
}

static void *block_in_read(void *unused)
{
	int ends[2];
	char byte;

	check(pipe(ends) == 0, "pipe");
	sem_post(&begun);
	for (;;)
		back(read(ends[0], &byte, 1));
	return unused;
}

static void *block_in_epoll(void *unused)
{
	int ends[2], epoll = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN};

	check(pipe(ends) == 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event) == 0, "epoll");
	sem_post(&begun);
	for (;;)
		back(syscall(SYS_epoll_wait, epoll, &event, 1, -1));
	return unused;
}

static void *block_in_pause(void *unused)
{
	sem_post(&begun);
	for (;;)
		back(pause());
	return unused;
}

static void forbid(void)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fork, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_wait4, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog filter = {sizeof program / sizeof *program, program};

	check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) == 0,
	      "seccomp");
}

static uint64_t special_page(int flags, int advice, const char *text)
{
	char *page = map(PAGE, flags);

	if (advice)
		check(madvise(page, PAGE, advice) == 0, "madvise");
	strcpy(page, text);
	return (uint64_t)page;
}

static void begin(const char *name, uint64_t count)
{
	static const struct {
		const char *name;
		void *(*run)(void *);
	} threads[] = {
		{"spin", spin},		  {"futex", block_in_futex}, {"nanosleep", block_in_nanosleep},
		{"read", block_in_read},  {"epoll", block_in_epoll}, {"pause", block_in_pause},
		{"faults", faults},
	};

	if (!strcmp(name, "memory"))
		return fill(count, MADV_NOHUGEPAGE);
	if (!strcmp(name, "thp"))
		return fill(count, MADV_HUGEPAGE);
	if (!strcmp(name, "dontfork"))
		report->dontfork = special_page(MAP_PRIVATE, MADV_DONTFORK, "dontfork");
	else if (!strcmp(name, "wipeonfork"))
		report->wipeonfork = special_page(MAP_PRIVATE, MADV_WIPEONFORK, "wipeonfork");
	else if (!strcmp(name, "shared"))
		report->shared = special_page(MAP_SHARED, 0, "shared");
	else if (!strcmp(name, "seccomp"))
		forbid();
	else if (!strcmp(name, "writer"))
		start(writer, (void *)count);
	else if (!strcmp(name, "lockstep")) {
		char *pages = map(3 * PAGE, MAP_PRIVATE);

		report->first = (uint64_t)pages;
		report->second = (uint64_t)(pages + 2 * PAGE);
		start(lockstep, NULL);
	}
	for (size_t i = 0; i < sizeof threads / sizeof *threads; i++)
		for (uint64_t n = 0; !strcmp(name, threads[i].name) && n < count; n++)
			start(threads[i].run, NULL);
}

static void change(char what)
{
	size_t quarter = report->size / 4;
	char *start = (char *)report->memory;
	char *second = start + quarter, *third = second + quarter, *last = third + quarter, *moved;

	switch (what) {
	case 'd':
		madvise(start, quarter, MADV_DONTNEED);
		break;
	case 'u':
		munmap(second, quarter);
		check(mmap(second, quarter, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == second, "mmap");
		memset(second, 'u', PAGE);
		break;
	case 'm':
		moved = mremap(third, quarter, quarter, MREMAP_MAYMOVE | MREMAP_FIXED,
			       map(quarter, MAP_PRIVATE));
		check(moved != MAP_FAILED, "mremap");
		check(mremap(moved, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, third) == third,
		      "mremap back");
		break;
	case 'z':
		madvise(last, quarter, MADV_DONTNEED);
		report->broken += *(volatile char *)last;
		break;
	}
}

int main(int argc, char **argv)
{
	char byte;
	int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);

	check(fd >= 0 && ftruncate(fd, sizeof *report) == 0, "report");
	report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(report != MAP_FAILED, "report");
	close(fd);
	for (int i = 2; i < argc; i++) {
		char *colon = strchr(argv[i], ':');

		if (colon)
			*colon = 0;
		begin(argv[i], colon ? strtoul(colon + 1, NULL, 10) : 1);
	}
	check(write(STDOUT_FILENO, "ready\n", 6) == 6, "ready");
	while (read(STDIN_FILENO, &byte, 1) == 1) {
		siginfo_t info;

		if (byte == 'c')
			dprintf(STDOUT_FILENO, "children %d\n",
				waitid(P_ALL, 0, &info, WEXITED | WNOHANG) < 0 ? 0 : 1);
		else {
			change(byte);
			dprintf(STDOUT_FILENO, "done\n");
		}
	}
	return 0;
}
