/* SPDX-License-Identifier: Apache-2.0 */
/* The line of the pipe helper: eight numbers with a blank between, and the line's end. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct taken t = { 0 };
	int fd = 0, tid = 0, blanks = 0;

	memcpy(t.line, data, size < LINE ? size : LINE - 1);
	if (!parse_line(&t, &tid, &fd)) {
		MUST(strlen(t.why) > 0 && strlen(t.why) < WHY);
		return 0;
	}
	for (const char *at = t.line; *at; at++)
		blanks += *at == ' ';
	MUST(blanks == 7 && t.line[strlen(t.line) - 1] == '\n');
	MUST(strspn(t.line, "0123456789 -\n") == strlen(t.line));
	MUST(t.pid == (int32_t)atol(t.line));
	return 0;
}
