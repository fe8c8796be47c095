/* SPDX-License-Identifier: Apache-2.0 */
/* What exit changes in memory that stays: mm_release() of kernel/fork.c. */
#include <string.h>
#include <sys/uio.h>

#include "native.h"

#define MAX_ENTRIES (16 << 10) /* of the robust lists of one process: 20 ms */
#define LOOK_EVERY 64        /* entries */
#define ROBUST_MS 50         /* for all of them: each look may have to wait for a lock */

/* Read pieces of another process; a size of 0 says that one cannot be read. */
static void read_pieces(int tid, struct iovec *to, struct iovec *from, size_t count)
{
	while (count) {
		ssize_t got = process_vm_readv(tid, to, count, from, count, 0);

		for (; count && got >= (ssize_t)from->iov_len; to++, from++, count--)
			got -= (ssize_t)from->iov_len;
		if (count) { /* it stops at the first that cannot be read: skip that one */
			to->iov_len = 0;
			to++, from++, count--;
		}
	}
}

static bool read_piece(struct taken *t, uint64_t address, void *to, size_t size)
{
	struct iovec local = { to, size }, remote = { (void *)(uintptr_t)address, size };

	if (!resident(t, address, size))
		return false;
	read_pieces(t->tid, &local, &remote, 1);
	return local.iov_len;
}

static void keep_word(struct taken *t, uint64_t address, uint32_t value)
{
	struct word *words = (struct word *)(uintptr_t)t->words.at;

	if (t->words.at + t->words.size + sizeof(*words) <= t->area.at + t->area.size) {
		words[t->words.size / sizeof(*words)] = (struct word){ address, value, 0 };
		t->words.size += sizeof(*words);
	}
}

static bool is_late(struct taken *t)
{
	int64_t now = now_ns();

	if (!t->robust_until_ns)
		t->robust_until_ns = now + ROBUST_MS * INT64_C(1000000);
	return now > t->robust_until_ns;
}

void keep_robust(struct taken *t, uint64_t head, const struct robust_head *list)
{
	uint64_t entry = list->next, lock = list->pending;
	uint32_t value;

	/* ROBUST_LIST_LIMIT of <linux/futex.h>; all threads together cannot keep us for long */
	for (int left = 2048; left && t->entries < MAX_ENTRIES; left--, t->entries++) {
		if (t->entries % LOOK_EVERY == 0 && is_late(t))
			t->entries = MAX_ENTRIES;
		if (lock && read_piece(t, (lock & ~1UL) + (uint64_t)list->offset, &value, 4))
			keep_word(t, (lock & ~1UL) + (uint64_t)list->offset, value);
		if (entry == head || !entry)
			break;
		lock = entry;
		if (!read_piece(t, entry & ~1UL, &entry, 8))
			entry = 0;
	}
}

/* A C library keeps both in the thread's control block, the list this many bytes behind at most. */
#define APART 256
#define BATCH 512

/* Where the kernel writes when a thread exits; 0: nowhere. */
struct places {
	uint64_t tid_word, robust_list;
};

static void keep_words_of(struct taken *t, const struct places *threads, size_t count)
{
	struct iovec local[BATCH], remote[BATCH];
	char blocks[BATCH][APART + sizeof(struct robust_head)];

	for (size_t i = 0; i < count; i++) {
		uint64_t tid = threads[i].tid_word, apart = threads[i].robust_list - tid;
		size_t size = apart + sizeof(struct robust_head);

		if (apart < 4 || apart > APART || !resident(t, tid, size))
			size = 0;
		remote[i] = (struct iovec){ (void *)(uintptr_t)tid, size };
		local[i] = (struct iovec){ blocks[i], size };
	}
	read_pieces(t->tid, local, remote, count);
	for (size_t i = 0; i < count; i++) {
		uint64_t tid = threads[i].tid_word, head = threads[i].robust_list;
		struct robust_head list;
		uint32_t value;

		if (local[i].iov_len)
			memcpy(&value, blocks[i], sizeof(value));
		if (local[i].iov_len || (tid && read_piece(t, tid, &value, sizeof(value))))
			keep_word(t, tid, value);
		if (local[i].iov_len)
			memcpy(&list, blocks[i] + (head - tid), sizeof(list));
		if ((local[i].iov_len || (head && read_piece(t, head, &list, sizeof(list)))) &&
		    (list.next != head || list.pending))
			keep_robust(t, head, &list);
	}
}

void keep_words(struct taken *t)
{
	struct places batch[BATCH];
	uint64_t at = t->threads.at, end = at + t->threads.size;
	size_t count = 0;

	while (at + sizeof(struct cw_thread) <= end) {
		struct cw_thread thread;

		/* no more of it than is needed here, and maybe unaligned */
		memcpy(&thread, (const void *)(uintptr_t)at, offsetof(struct cw_thread, regs));
		batch[count] = (struct places){ thread.clear_child_tid, thread.robust_list };
		if (thread.size < sizeof(thread)) {
			at = end; /* no record of ours: Python will say so */
		} else {
			at += thread.size;
			count++;
		}
		if (count == BATCH || at + sizeof(struct cw_thread) > end) {
			keep_words_of(t, batch, count);
			count = 0;
		}
	}
}
