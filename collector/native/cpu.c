/* Facts of this CPU that only its own instructions tell: collector/native/cpu.py asks for them.
 *
 * x86-64 (Intel SDM volume 1, chapter 13). A library of its own, because it needs no right and is
 * loaded also by those who only take snapshots.
 */
#include <cpuid.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MXCSR_MASK 28 /* its offset in an FXSAVE area of 512 bytes */

EXPORT void coreward_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
EXPORT uint64_t coreward_xgetbv(void);
EXPORT uint32_t coreward_mxcsr_mask(void);

/* EAX, EBX, ECX and EDX of CPUID. A leaf beyond the last is that of the last one. */
void coreward_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	__cpuid_count(leaf, subleaf, out[0], out[1], out[2], out[3]);
}

/* XCR0. Faults unless CPUID says OSXSAVE. _xgetbv() would want -mxsave for all of this file. */
uint64_t coreward_xgetbv(void)
{
	uint32_t low, high;

	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return (uint64_t)high << 32 | low;
}

/* The bits of MXCSR that this CPU has; 0: those of the first CPUs with SSE. */
uint32_t coreward_mxcsr_mask(void)
{
	_Alignas(16) uint8_t area[512];
	uint32_t mask;

	memset(area, 0, sizeof(area));
	__asm__ volatile("fxsave64 %0" : "+m"(area));
	memcpy(&mask, area + MXCSR_MASK, sizeof(mask));
	return mask;
}
