/* Twelve kinds of bugs, each in a function of its own: bugs KIND.
 *
 * The compilers may inline what they like, but for one: whether the stack is whole is checked by the
 * function whose frame it is, which is the caller's if that was inlined. Calls to what fails are not
 * the last thing that a function does, for such a call leaves no frame when it is optimised. Values
 * that the compilers must not see through are volatile. */
#define _GNU_SOURCE
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct item {
    struct item *next;
    int count;
    char text[48];
};
static struct item *volatile nobody;
static int (*volatile handler)(int);
static volatile int zero, one = 1;
static volatile int calls;

static int count_request(struct item *item) { /* a field of a null pointer */
    item->count++;
    return item->count;
}

static int dispatch_event(int event) { /* a call through null */
    int done = handler(event);
    calls++;
    return done + event;
}

static int walk_freed(void) { /* reads a pointer out of freed memory, and follows it */
    struct item *volatile item = calloc(1, sizeof *item);
    free((void *)item);
    return item->next->count + one;
}

static int drop_twice(void) { /* a double free */
    void *volatile item = malloc(48);
    free(item);
    free(item);
    return one;
}

static int parse_list(int depth);

static int parse_item(int depth) { /* a recursion without end, over two functions */
    volatile char room[200];
    room[0] = (char)depth;
    return parse_list(depth + 1) + room[0];
}

static int parse_list(int depth) {
    volatile char room[100];
    room[0] = (char)depth;
    return one ? parse_item(depth + 1) + room[0] : 0;
}

static int check_order(int amount) { /* an assertion */
    assert(amount > 0);
    return amount + one;
}

static int average(int sum, int of) { /* a division by zero */
    return sum / of;
}

static int unreachable_case(int kind) { /* an instruction that there is not */
    if (kind == 1) {
        calls++;
        __builtin_trap();
    }
    return kind;
}

static int patch_header(const char *header) { /* writes to a constant */
    ((volatile char *)header)[0] = (char)one;
    return header[0];
}

__attribute__((noinline)) static int read_name(const char *name) { /* writes beyond a buffer on the stack */
    char copy[16];
    volatile char *at = copy;
    for (int i = 0; name[i] && i < 24 + one; i++)
        at[i] = name[i];
    calls += at[0];
    return copy[1];
}

static int copy_out(char *to, size_t size) { /* memcpy() beyond the end of a mapping */
    char *volatile from = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(from + 4096, 4096, PROT_NONE);
    memcpy(to, from + 4000, size);
    return to[one];
}

static int read_page(void) { /* beyond the end of a mapped file */
    int fd = memfd_create("short", 0);
    volatile char *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    return page[one];
}

static int run(const char *kind) {
    static char room[8192];
    if (!strcmp(kind, "null"))
        return count_request(nobody);
    if (!strcmp(kind, "call"))
        return dispatch_event(one);
    if (!strcmp(kind, "freed"))
        return walk_freed();
    if (!strcmp(kind, "twice"))
        return drop_twice();
    if (!strcmp(kind, "recursion"))
        return parse_list(1);
    if (!strcmp(kind, "assertion"))
        return check_order(zero);
    if (!strcmp(kind, "division"))
        return average(100, zero);
    if (!strcmp(kind, "trap"))
        return unreachable_case(one);
    if (!strcmp(kind, "constant"))
        return patch_header("header");
    if (!strcmp(kind, "smash"))
        return read_name("a name that is longer than its buffer");
    if (!strcmp(kind, "copy"))
        return copy_out(room, 4000 + (size_t)one);
    if (!strcmp(kind, "file"))
        return read_page();
    return 2;
}

int main(int argc, char **argv) {
    int done = argc == 2 ? run(argv[1]) : 2;
    calls++;
    return done;
}
