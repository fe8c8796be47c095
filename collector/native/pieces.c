/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What there is of a process's memory, as its page tables say: /proc/PID/pagemap, by the ioctl
 * PAGEMAP_SCAN (Linux >= 6.7, <linux/fs.h>) or by its entries
 * (Documentation/admin-guide/mm/pagemap.rst).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "pieces.h"

#define REGIONS 1024 /* of one ioctl */
#define ENTRIES 4096 /* of one read */
#define ENTRY_PRESENT (1UL << 63)
#define ENTRY_SWAPPED (1UL << 62)
#define IS_PRESENT (1UL << 3)
#define IS_SWAPPED (1UL << 4)
#define IS_ZERO (1UL << 5)

struct region {
	uint64_t start, end, kind;
};

struct scan {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t inverted, mask, any_of, returned;
};

#define PAGEMAP_SCAN _IOWR('f', 16, struct scan)

struct finder {
	int pagemap;
	bool gaps;         /* the pages between those that there are are wanted */
	uint64_t at;       /* up to here all is said */
	struct list *list;
};

/* Room for one more; false: no memory. */
static bool grow(struct list *list)
{
	size_t room = list->room ? 2 * list->room : 1024;
	struct source *sources;

	if (list->count < list->room)
		return true;
	sources = realloc(list->sources, room * sizeof(*sources));
	if (!sources)
		return false;
	list->sources = sources;
	list->room = room;
	return true;
}

/* Adds [start, end), in pieces that end where huge pages of the area do. */
static bool add(struct list *list, uint64_t start, uint64_t end, int fd, off_t from)
{
	while (start < end) {
		uint64_t size = list->most - list->size % list->most;

		if (size > end - start)
			size = end - start;
		if (!grow(list))
			return false;
		list->sources[list->count++] = (struct source){
			.piece = { .start = start, .end = start + size }, .from = from, .fd = fd
		};
		list->size += size;
		start += size;
		from += (off_t)size;
	}
	return true;
}

/* Adds what is left of a piece from `start` on. */
bool append(struct list *list, const struct source *of, uint64_t start)
{
	uint64_t done = start - of->piece.start;

	if (!grow(list))
		return false;
	list->sources[list->count++] = (struct source){
		.piece = { start, of->piece.end, of->piece.offset + done, 0 },
		.from = of->from + (off_t)done,
		.fd = of->fd,
	};
	return true;
}

/* The pages [start, end) are there. */
static bool found(struct finder *f, uint64_t start, uint64_t end)
{
	bool good = f->gaps ? add(f->list, f->at, start, -1, 0) : add(f->list, start, end, -1, 0);

	f->at = end;
	return good;
}

static bool by_entries(struct finder *f, uint64_t start, uint64_t end)
{
	uint64_t entries[ENTRIES], first = 0;

	while (start < end) {
		size_t count = (end - start) / PAGE < ENTRIES ? (end - start) / PAGE : ENTRIES;
		ssize_t got = pread(f->pagemap, entries, count * 8, (off_t)(start / PAGE * 8));

		if (got < 8)
			break;
		for (size_t i = 0; i < (size_t)got / 8; i++, start += PAGE) {
			if (entries[i] & (ENTRY_PRESENT | ENTRY_SWAPPED)) {
				first = first ? first : start;
			} else if (first) {
				if (!found(f, first, start))
					return false;
				first = 0;
			}
		}
	}
	return !first || found(f, first, start);
}

/* False: none of it can be known, or there is no memory. */
static bool find(struct finder *f, uint64_t start, uint64_t end)
{
	struct region regions[REGIONS];
	struct scan s = {
		.size = sizeof(s), .start = start, .end = end,
		.vec = (uint64_t)(uintptr_t)regions, .vec_len = REGIONS,
		.any_of = IS_PRESENT | IS_SWAPPED, .returned = IS_ZERO,
	};

	while (s.start < end) {
		int count = ioctl(f->pagemap, PAGEMAP_SCAN, &s);

		if (count < 0)
			return (errno == ENOTTY || errno == EINVAL) && by_entries(f, s.start, end);
		for (int i = 0; i < count; i++) /* of the zero page there is nothing to copy, nor a gap */
			if (f->gaps || !(regions[i].kind & IS_ZERO))
				if (!found(f, regions[i].start, regions[i].end))
					return false;
		s.start = s.walk_end ? s.walk_end : end;
	}
	return true;
}

/* Adds what a file has data for: behind holes there are zeros. */
static bool add_file(struct list *list, const struct part *p)
{
	off_t last = p->offset + (off_t)(p->end - p->start), at = p->offset, hole;

	while (at < last) {
		at = lseek(p->fd, at, SEEK_DATA) & (off_t)-PAGE;
		hole = at < 0 ? -1 : lseek(p->fd, at, SEEK_HOLE);
		if (hole < 0)
			break; /* no data behind this point */
		hole = (hole + (off_t)PAGE - 1) & (off_t)-PAGE;
		if (hole > last)
			hole = last;
		if (at < hole && !add(list, p->start + (uint64_t)(at - p->offset),
				      p->start + (uint64_t)(hole - p->offset), p->fd, at))
			return false;
		at = hole;
	}
	return true;
}

/* List what there is of all parts, in their order; false with errno. */
bool find_pieces(const struct order *order, const struct part *parts, struct list *present,
		 struct list *absent)
{
	for (const struct part *p = parts; p < parts + order->parts; p++) {
		struct finder f = { .pagemap = order->pagemap, .gaps = p->kind == ABSENT,
				    .at = p->start };
		bool good;

		f.list = f.gaps ? absent : present;
		if (p->kind == OF_FILE)
			good = add_file(present, p);
		else if (p->kind == ALL)
			good = add(present, p->start, p->end, -1, 0);
		else
			good = find(&f, p->start, p->end);
		if (good && f.gaps)
			good = add(absent, f.at, p->end, -1, 0);
		if (!good)
			return false;
	}
	return true;
}

/*
 * Give all pieces their place in the area, from `offset` on, as far as there is room. The one that
 * does not fit is cut in two.
 */
void place(struct list *list, uint64_t offset, uint64_t room)
{
	for (size_t i = 0; i < list->count; i++) {
		uint64_t start = list->sources[i].piece.start, end = list->sources[i].piece.end;
		uint64_t fits = room - offset < end - start ? room - offset : end - start;
		bool cut = fits && fits < end - start;

		if (!fits || (cut && !append(list, &list->sources[i], start + fits))) {
			list->sources[i].piece.offset = NO_ROOM;
			continue;
		}
		list->sources[i].piece.offset = offset;
		list->sources[i].piece.end = start + fits;
		offset += fits;
	}
	list->placed = offset;
}

/* Write the pieces into the area's file; false with errno. */
bool write_table(const struct list *list, int fd, uint64_t offset)
{
	struct piece some[REGIONS];

	for (size_t i = 0; i < list->count;) {
		size_t count = 0, size;

		while (i < list->count && count < REGIONS)
			some[count++] = list->sources[i++].piece;
		size = count * sizeof(some[0]);
		if (pwrite(fd, some, size, (off_t)offset) != (ssize_t)size)
			return false;
		offset += size;
	}
	return true;
}
