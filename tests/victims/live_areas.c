// A process at rest with memory of many kinds.
//
//     live_areas FILE [sparse]
//
// FILE becomes lines "name address size". Each area holds its name at its start, where it can be
// read. With `sparse` one area is 20 GiB large, of which 200 MiB are touched, page by page. Areas
// that the kernel does not give are not in FILE. It ends when its standard input does.
#include "victim.h"

#include <stdint.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define HUGE (2ul << 20)
#define GUARD_INSTALL 102 // MADV_GUARD_INSTALL, <asm-generic/mman-common.h> of Linux 6.13

static FILE *list;

static char *area(const char *name, size_t size, int flags)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		return NULL;
	fprintf(list, "%s %#lx %#lx\n", name, (unsigned long)at, size);
	strcpy(at, name);
	return at;
}

static void advised(const char *name, int advice)
{
	check(madvise(area(name, 4 * PAGE, MAP_PRIVATE), 4 * PAGE, advice) == 0, name);
}

// Between two readable pages, one that is not.
static void guarded(const char *name, int lightweight)
{
	char *at = area(name, 3 * PAGE, MAP_PRIVATE);

	at[PAGE] = at[2 * PAGE] = '!';
	if (lightweight)
		madvise(at + PAGE, PAGE, GUARD_INSTALL);
	else
		check(mprotect(at + PAGE, PAGE, PROT_NONE) == 0, name);
}

static void huge(void)
{
	char *at = area("thp", 3 * HUGE, MAP_PRIVATE);

	madvise(at, 3 * HUGE, MADV_HUGEPAGE);
	for (size_t i = PAGE; i < 3 * HUGE; i += PAGE)
		*(size_t *)(at + i) = i;
}

static void sparse(void)
{
	size_t size = 20ul << 30, stride = size / (200ul << 20 >> 12);
	char *at = area("sparse", size, MAP_PRIVATE | MAP_NORESERVE);

	madvise(at, size, MADV_NOHUGEPAGE);
	for (size_t i = stride; i < size; i += stride)
		*(size_t *)(at + (i & -PAGE)) = i;
}

int main(int argc, char **argv)
{
	list = fopen(argv[1], "w");
	check(list != NULL, argv[1]);
	area("private", 4 * PAGE, MAP_PRIVATE);
	area("shared", 4 * PAGE, MAP_SHARED);
	area("hugetlb", HUGE, MAP_PRIVATE | MAP_HUGETLB);
	advised("dontdump", MADV_DONTDUMP);
	advised("dontfork", MADV_DONTFORK);
	advised("wipeonfork", MADV_WIPEONFORK);
	guarded("guard", 0);
	guarded("lightweight", 1);
	huge();
	if (argc > 2 && strcmp(argv[2], "sparse") == 0)
		sparse();
	fclose(list);
	ready(argc, argv);
	return 0;
}
