/* fuse_private FOLDER
 *
 * Mounts a file system (FUSE) at FOLDER whose owner answers reads of the first page of its one file,
 * and of no other for ever; maps that file privately at 0x100000000000, 64 MiB long, writes its first
 * page, then writes to address 0. As root. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "victim.h"

#define SIZE (64UL << 20)
#define PLACE ((char *)0x100000000000)

static void crash(volatile int *pointer)
{
	*pointer = 1;
}

static void answer(int fd, unsigned long unique, int error, const void *data, size_t size)
{
	char buffer[8192];
	struct fuse_out_header *out = (void *)buffer;

	out->len = sizeof(*out) + size;
	out->error = error;
	out->unique = unique;
	memcpy(out + 1, data, size);
	write(fd, buffer, out->len);
}

static void serve(int fd)
{
	static char buffer[1 << 20], page[4096] = "of fuse";
	struct fuse_in_header *in = (void *)buffer;

	while (read(fd, buffer, sizeof(buffer)) >= 0 || errno == EINTR || errno == ENOENT) {
		struct fuse_init_out init = { .major = 7, .minor = 31, .max_write = 4096 };
		struct fuse_attr attr = { .ino = in->nodeid, .nlink = 1, .blksize = 4096,
					  .size = in->nodeid == 1 ? 0 : SIZE,
					  .mode = in->nodeid == 1 ? S_IFDIR | 0755
								  : S_IFREG | 0644 };
		struct fuse_entry_out entry = { .nodeid = 2, .entry_valid = 1 << 20,
						.attr_valid = 1 << 20, .attr = attr };
		struct fuse_attr_out about = { .attr = attr, .attr_valid = 1 << 20 };
		struct fuse_open_out opened = { 0 };

		if (in->opcode == FUSE_INIT) {
			answer(fd, in->unique, 0, &init, sizeof(init));
		} else if (in->opcode == FUSE_LOOKUP) {
			entry.attr.ino = 2, entry.attr.size = SIZE, entry.attr.mode = S_IFREG | 0644;
			answer(fd, in->unique, 0, &entry, sizeof(entry));
		} else if (in->opcode == FUSE_GETATTR) {
			answer(fd, in->unique, 0, &about, sizeof(about));
		} else if (in->opcode == FUSE_OPEN) {
			answer(fd, in->unique, 0, &opened, sizeof(opened));
		} else if (in->opcode == FUSE_READ) {
			struct fuse_read_in *wanted = (void *)(in + 1);

			if (wanted->offset == 0)
				answer(fd, in->unique, 0, page, sizeof(page));
		} else if (in->opcode != FUSE_FORGET && in->opcode != FUSE_BATCH_FORGET &&
			   in->opcode != FUSE_INTERRUPT) {
			answer(fd, in->unique, -ENOSYS, NULL, 0);
		}
	}
	_exit(0); /* unmounted */
}

int main(int argc, char **argv)
{
	int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	char text[128], path[4096];
	char *area;

	snprintf(text, sizeof(text), "fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=4096", fd);
	check(fd >= 0 && mount("fuse", argv[1], "fuse", 0, text) == 0, "fuse");
	if (fork() == 0) {
		for (int i = 0; i < 3; i++)
			close(i);
		serve(fd);
	}
	close(fd);
	snprintf(path, sizeof(path), "%s/file", argv[1]);
	fd = open(path, O_RDONLY);
	check(fd >= 0, "open");
	area = mmap(PLACE, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
	check(area == PLACE, "mmap");
	area[100] = 1;
	ready(argc - 1, argv);
	crash(NULL);
	return 0;
}
