/* SPDX-License-Identifier: Apache-2.0 */
/* /proc/PID/status: its numbers, and what is decided by them. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const names[] = { "Tgid", "Threads", "RssAnon", "RssShmem", "VmSwap" };
	struct orders o = { .max_pins = 1, .max_pinned = 1L << 40 }; /* nothing is open */
	struct taken t = { 0 };
	char *text = text_from(data, size);

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		MUST(field(text, names[i]) == -1 || strstr(text, names[i]));
	t.texts[STATUS] = (struct bytes){ (uintptr_t)text, size };
	t.texts[CGROUP] = (struct bytes){ (uintptr_t)text, 0 };
	if (admit(&o, &t)) {
		MUST(o.fresh.pins == 1 && o.fresh.bytes == t.private_size);
		MUST(t.private_size >= 0 && t.private_size <= o.max_pinned);
		coreward_entered(&o, t.private_size, t.levels, t.limits);
	}
	MUST(o.fresh.pins == 0 && o.fresh.bytes == 0 && o.fresh.count == 0);
	free(text);
	return 0;
}
