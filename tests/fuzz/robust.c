/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk along the robust lists of a process. The input is its memory from BASE on, of which the
 * first words say where each of up to four threads has its tid word and its list.
 */
#include "fuzz.h"

#define BASE 0x10000000UL
#define SIZE 0x4000UL
#define BUFFER (1 << 16)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct taken process;
	static char *memory;
	struct cw_thread threads[4] = { 0 };
	uint64_t *words;
	struct taken t;

	if (!memory) {
		process = of_this_process();
		memory = mmap((void *)BASE, SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		MUST(memory == (void *)BASE);
	}
	memset(memory, 0, SIZE);
	memcpy(memory, data, size < SIZE ? size : SIZE);
	for (int i = 0; i < 4; i++) {
		threads[i].size = sizeof(threads[i]);
		memcpy(&threads[i].clear_child_tid, memory + 16 * i, 8);
		memcpy(&threads[i].robust_list, memory + 16 * i + 8, 8);
	}
	words = malloc(BUFFER);
	MUST(words);
	t = process;
	t.threads = (struct bytes){ (uintptr_t)threads, sizeof(threads) };
	t.words = (struct bytes){ (uintptr_t)words, 0 };
	t.area = (struct bytes){ (uintptr_t)words, BUFFER };
	keep_words(&t);
	MUST(t.words.size <= BUFFER && t.words.size % sizeof(struct word) == 0);
	free(words);
	return 0;
}
