/* SPDX-License-Identifier: Apache-2.0 */
/* /proc/PID/stat, in which a process chooses its name and where its arguments are. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct taken t;
	char *text = text_from(data, size);
	uint64_t ticks = start_ticks(text);

	if (!t.pid)
		t = of_this_process();
	MUST(!ticks || strchr(text, ')'));
	has_arguments(&t, text);
	free(text);
	return 0;
}
