"""Numbers and structures of ELF cores on x86-64 Linux, each written once.

Sources: elf(5), <linux/elf.h>, <linux/elfcore.h>, <sys/procfs.h>; the order and the contents of
the notes are those of fs/binfmt_elf.c. Not here: anything that reads or writes a file.
"""

from __future__ import annotations

import struct

# --- file, program and section header (Elf64_Ehdr, Elf64_Phdr, Elf64_Shdr) ---------------------
E_IDENT = bytes((0x7F, 0x45, 0x4C, 0x46, 2, 1, 1)) + bytes(9)  # 64 bit, little endian, version 1
ET_CORE = 4
EM_X86_64 = 62
PT_LOAD = 1
PT_NOTE = 4
PN_XNUM = 0xFFFF  # e_phnum: the real count is in sh_info of section header 0
NOTE_ALIGN = 4
# ident, type, machine, version, entry, phoff, shoff, flags, ehsize, phentsize, phnum, shentsize,
# shnum, shstrndx
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
# type, flags, offset, vaddr, paddr, filesz, memsz, align
PHDR = struct.Struct("<IIQQQQQQ")
# name, type, flags, addr, offset, size, link, info, addralign, entsize
SHDR = struct.Struct("<IIQQQQIIQQ")

# --- notes ------------------------------------------------------------------------------------
NHDR = struct.Struct("<III")  # namesz (with NUL), descsz, type
CORE = b"CORE"
LINUX = b"LINUX"
NT_PRSTATUS = 1
NT_FPREGSET = 2
NT_PRPSINFO = 3
NT_AUXV = 6
NT_X86_XSTATE = 0x202
NT_X86_XSAVE_LAYOUT = 0x205
NT_FILE = 0x46494C45
NT_SIGINFO = 0x53494749

SIGINFO_SIZE = 128
FXSAVE_SIZE = 512
FXSAVE_SOFTWARE = 464  # sw_reserved of the FXSAVE area: in NT_X86_XSTATE the features' mask

# struct elf_prstatus: si_signo, si_code, si_errno, cursig, sigpend, sighold, pid, ppid, pgrp,
# sid, 4 timevals (user, system, children's user and system), registers, fpvalid
PRSTATUS = struct.Struct("<iiih2xQQiiii8q27Qi4x")
# struct elf_prpsinfo: state, sname, zomb, nice, flag, uid, gid, pid, ppid, pgrp, sid, fname,
# psargs
PRPSINFO = struct.Struct("<BcBb4xQIIiiii16s80s")
FILE_HEAD = struct.Struct("<QQ")  # count, page size
FILE_LINE = struct.Struct("<QQQ")  # start, end, offset in pages

STATES = "RSDTZW"  # pr_sname by pr_state; any later state is "."

assert EHDR.size == 64
assert PHDR.size == 56
assert SHDR.size == 64
assert PRSTATUS.size == 336
assert PRPSINFO.size == 136
