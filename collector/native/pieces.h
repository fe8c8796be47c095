/* SPDX-License-Identifier: Apache-2.0 */
/* Pieces of memory that coreward-copy reads: what there is of an order's parts, and where it goes. */
#ifndef COREWARD_PIECES_H
#define COREWARD_PIECES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "copier.h"

#define PAGE 4096UL
#define NO_ROOM UINT64_MAX /* an offset */

struct source {
	struct piece piece;
	off_t from; /* in the file */
	int fd;     /* -1: memory of the process */
};

struct list {
	struct source *sources;
	size_t count, room;
	size_t next;     /* the first that no thread has taken */
	int busy;        /* threads */
	uint64_t most;   /* bytes of a piece */
	uint64_t size;   /* bytes of all */
	uint64_t placed; /* where the last one ends in the area */
};

bool find_pieces(const struct order *order, const struct part *parts, struct list *present,
		 struct list *absent);
void place(struct list *list, uint64_t offset, uint64_t room);
bool append(struct list *list, const struct source *of, uint64_t start);
bool write_table(const struct list *list, int fd, uint64_t offset);

#endif
