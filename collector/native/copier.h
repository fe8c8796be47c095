/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What coreward-copy is asked and what it answers; the mirror is collector/capture/copier.py. Sizes
 * and offsets are bytes, addresses are of the process that is copied, and both are whole pages.
 *
 * Standard input is a file: an order, then its parts. The copy goes into the file `area`. Behind it
 * comes a table of its pieces, and then the answer on standard output, once.
 */
#ifndef COREWARD_COPIER_H
#define COREWARD_COPIER_H

#include <stdint.h>

struct order {
	uint64_t room;       /* bytes that may be copied */
	int64_t until_ns;    /* CLOCK_MONOTONIC; what is read later does not count */
	uint64_t first;      /* 1: the first part is copied in any case, even if it begins late */
	int32_t pid;         /* of a thread that has the memory, as long as `pidfd` has not ended */
	int32_t pidfd;
	int32_t mem;         /* /proc/PID/mem and /proc/PID/pagemap, read-only */
	int32_t pagemap;
	int32_t area;        /* an empty file */
	uint32_t whole;      /* 1: if not all of it fits, nothing is copied */
	uint64_t parts;
};

enum kind {
	IN_MEMORY, /* what of it is in memory, or in swap, and not the zero page */
	ALL,
	OF_FILE,   /* what the file `fd` has data for, from `offset` on */
	ABSENT,    /* what of it is not in memory: it comes last, and has QUIET_NS for all */
};

struct part {
	uint64_t start, end;
	int64_t offset;
	int32_t fd;
	uint32_t kind;
};

struct piece {
	uint64_t start, end; /* that were to be copied */
	uint64_t offset;     /* where they begin in the area */
	uint64_t got;        /* bytes that are there */
};

struct answer {
	int64_t error;   /* errno; 0: none */
	uint64_t size;   /* bytes in memory of all parts */
	uint64_t table;  /* offset of the pieces in the area */
	uint64_t pieces; /* 0 as well if there was no room */
};

#endif
