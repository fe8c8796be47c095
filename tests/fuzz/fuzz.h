/* SPDX-License-Identifier: Apache-2.0 */
/* What the fuzz targets share: each is one file that calls the native part's own functions. */
#ifndef FUZZ_H
#define FUZZ_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "native.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #what); \
			abort(); \
		} \
	} while (0)

/* A copy with a zero behind, of exactly that size, so that the sanitizer sees each step beyond. */
static inline char *text_from(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);

	MUST(text);
	memcpy(text, data, size);
	text[size] = 0;
	return text;
}

/* This process, as if it were the one that is held. */
static inline struct taken of_this_process(void)
{
	struct taken t = { .pid = getpid(), .tid = getpid() };

	for (int i = 0; i < FDS; i++)
		t.fds[i] = -1;
	t.fds[PAGEMAP] = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	MUST(t.fds[PAGEMAP] >= 0);
	return t;
}

#endif
