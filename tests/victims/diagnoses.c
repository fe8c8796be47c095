/* One way to die for each category of a diagnosis: diagnoses KIND [now] */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>

#include "victim.h"

struct node {
	char payload[24];
	struct node *next;
};

static char large_stack[1 << 16];

__attribute__((noinline)) static long follow(const struct node *node)
{
	return (long)node->next;
}

static long read_element(const int *array, long number)
{
	return array[number];
}

static void write_to(volatile char *pointer)
{
	*pointer = 1;
}

static void call(void (*function)(void))
{
	function();
}

static int recurse(int depth)
{
	volatile char frame[128];

	frame[0] = (char)depth;
	return recurse(depth + 1) + frame[0];
}

static void *recurse_in_thread(void *unused)
{
	(void)unused;
	pthread_setname_np(pthread_self(), "deep");
	return (void *)(long)recurse(0);
}

static void raise_again(int number)
{
	signal(number, SIG_DFL);
	raise(number);
}

static void smash(size_t size)
{
	char buffer[8];

	memset(buffer, 1, size);
}

static void overflow_with_handler(void)
{
	stack_t alternate = {.ss_sp = large_stack, .ss_size = sizeof large_stack};
	struct sigaction action = {.sa_handler = raise_again, .sa_flags = SA_ONSTACK | SA_NODEFER};

	check(sigaltstack(&alternate, NULL) == 0 && sigaction(SIGSEGV, &action, NULL) == 0, "handler");
	recurse(0);
}

static void overflow_in_thread(void)
{
	pthread_t thread;

	check(pthread_create(&thread, NULL, recurse_in_thread, NULL) == 0, "thread");
	pthread_join(thread, NULL);
}

static void use_freed(void)
{
	struct node *node = malloc(sizeof *node), **first = (struct node **)node;

	__asm__ volatile("" : "+r"(first)); /* the compiler does not see that they are the same */
	free(node);
	/* what glibc has written over it passes for a pointer */
	follow(*first);
}

static void corrupt_heap(void)
{
	char *one = malloc(24), *other = malloc(24);
	volatile size_t too_much = 40;

	memset(one, 0x41, too_much);
	free(other);
	free(one);
}

static void misalign(void)
{
	__asm__ volatile("movaps %%xmm0, 8(%0)" ::"r"((long)large_stack & -16) : "memory");
}

static void halt(void)
{
	__asm__ volatile("hlt");
}

static void return_badly(void)
{
	__asm__ volatile("pushq %0; ret" ::"r"(0x4141414141414141));
}

static void grow_file(void)
{
	struct rlimit limit = {1, 1};
	int fd = open("grown", O_WRONLY | O_CREAT | O_TRUNC, 0600);

	check(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
	write(fd, "ab", 2);
	write(fd, "ab", 2);
}

static void burn(void)
{
	struct rlimit limit = {1, 10};

	check(setrlimit(RLIMIT_CPU, &limit) == 0, "setrlimit");
	for (;;)
		;
}

static void break_pipe(void)
{
	int ends[2];

	check(pipe(ends) == 0, "pipe");
	close(ends[0]);
	write(ends[1], "x", 1);
}

static void wait_for_timer(void)
{
	struct itimerval soon = {.it_value = {.tv_usec = 1000}};

	setitimer(ITIMER_REAL, &soon, NULL);
	for (;;)
		pause();
}

static void touch_mapping(int protection)
{
	char *page = mmap(NULL, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(page != MAP_FAILED, "mmap");
	if (protection == PROT_READ)
		write_to(page);
	read_element((int *)page, 0);
}

static void execute_data(void)
{
	static char code[] = {(char)0xc3};

	call((void (*)(void))(long)code);
}

static void use_unmapped(void)
{
	char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	munmap(page, 4096);
	read_element((int *)page, 0);
}

static void read_far_from_null(void)
{
	__asm__ volatile("movl 0x400000(%0), %%eax" ::"r"(0L) : "rax");
}

static void read_before_null(void)
{
	read_element(NULL, -2);
}

static void read_near_null(void)
{
	follow(NULL);
}

static void write_null(void)
{
	write_to(NULL);
}

static void read_non_canonical(void)
{
	read_element((int *)0x4141414141414140, 0);
}

static void call_null(void)
{
	call(NULL);
}

static void call_unmapped(void)
{
	call((void (*)(void))0x123456789000);
}

static void recurse_for_ever(void)
{
	recurse(0);
}

static void smash_stack(void)
{
	smash(64);
}

static void raise_user(void)
{
	raise(SIGUSR1);
}

static void protect(void)
{
	touch_mapping(PROT_READ);
}

static void guard(void)
{
	touch_mapping(PROT_NONE);
}

static void leave(void)
{
	exit(3);
}

static void wait_for_end(void)
{
	for (;;)
		pause();
}

static const struct {
	const char *name;
	void (*die)(void);
} kinds[] = {
	{"null-dereference", write_null},
	{"near-null", read_near_null},
	{"far-from-null", read_far_from_null},
	{"before-null", read_before_null},
	{"stack-overflow", recurse_for_ever},
	{"thread-overflow", overflow_in_thread},
	{"handled-overflow", overflow_with_handler},
	{"bad-call", call_null},
	{"unmapped-call", call_unmapped},
	{"bad-return", return_badly},
	{"unmapped", use_unmapped},
	{"freed-memory", use_freed},
	{"non-canonical", read_non_canonical},
	{"execute-data", execute_data},
	{"write-read-only", protect},
	{"no-access", guard},
	{"misaligned", misalign},
	{"privileged-instruction", halt},
	{"heap-corruption", corrupt_heap},
	{"buffer-overflow", smash_stack},
	{"raised", raise_user},
	{"file-size-limit", grow_file},
	{"cpu-limit", burn},
	{"broken-pipe", break_pipe},
	{"timer", wait_for_timer},
	{"exit-status", leave},
	{"killed", wait_for_end},
};

int main(int argc, char **argv)
{
	ready(argc, argv);
	for (size_t n = 0; argc > 1 && n < sizeof kinds / sizeof *kinds; n++)
		if (strcmp(argv[1], kinds[n].name) == 0)
			kinds[n].die();
	return 2;
}
