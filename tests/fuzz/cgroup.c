/* SPDX-License-Identifier: Apache-2.0 */
/* /proc/PID/cgroup: a process in a container of its own may choose the names of its groups. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = text_from(data, size);
	struct taken t = { 0 };
	bool known = find_levels(&t, text, 0);

	/* never a yes for a path that leads elsewhere, nor for a group that is not there */
	MUST(!known || strncmp(text, "0::/..", 6));
	MUST(!known || strncmp(text, "0::/absent", 10));
	MUST(t.limits >= 0 && t.limits <= DEPTH);
	free(text);
	return 0;
}
