/* secrets --card NUMBER: keeps it on the heap and on the stack, with a copy of PLANTED_TOKEN of its
 * environment; the next number over the border of two pages; and WORDS backwards in a file of /dev/shm.
 * Then it waits, and dies by abort(3) with its number in the message. Nothing else has any of them. */
#include <assert.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "victim.h"

#define WORDS "nettirw eb ot ton era sdrow eseht"

static char *on_heap, *token, *over_border, *shared;

static void die(const char *number)
{
	char message[64];

	snprintf(message, sizeof(message), "card %s is no good", number);
	__assert_fail(message, __FILE__, __LINE__, __func__);
}

int main(int argc, char **argv)
{
	const char *number = argc > 2 ? argv[2] : "", *planted = getenv("PLANTED_TOKEN");
	char on_stack[64], next[32], path[64];
	int fd;

	snprintf(on_stack, sizeof(on_stack), "card %s", number);
	on_heap = strdup(on_stack);
	token = strdup(planted ? planted : "");

	snprintf(next, sizeof(next), "%lu", strtoul(number, NULL, 10) + 1);

	over_border = mmap(NULL, 8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(over_border != MAP_FAILED, "mmap");
	memset(over_border, ' ', 8 << 20);
	/* of two pages, and of two pieces that a writer reads */
	memcpy(over_border + 4096 - 5, next, strlen(next));
	for (unsigned long at = (unsigned long)over_border; at < (unsigned long)over_border + (8 << 20);
	     at += 4096)
		if (at % (4 << 20) == 0 && at > (unsigned long)over_border + 4096)
			memcpy((char *)at - 9, next, strlen(next));

	snprintf(path, sizeof(path), "/dev/shm/keys-%d", getpid());
	fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	check(fd >= 0 && ftruncate(fd, 4096) == 0, path);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(shared != MAP_FAILED, "mmap");
	unlink(path);
	for (unsigned int i = 0; i < sizeof(WORDS) - 1; i++)
		shared[i] = WORDS[sizeof(WORDS) - 2 - i];

	ready(argc, argv);
	die(number);
	return 0;
}
