"""Values of arguments in the notation of strace(1): texts, addresses, structures that it decodes.

Pure. All that comes from a traced process is a number, or is quoted with everything but printable
ASCII escaped.
"""

from __future__ import annotations

import signal
import struct

from collector import siginfo
from collector.arch.syscalls import syscall_name
from collector.explain.names import code_name
from collector.signals import signal_name
from collector.trace.layout import Text

_ESCAPES = {
    0x22: '\\"',
    0x5C: "\\\\",
    0x0A: "\\n",
    0x09: "\\t",
    0x0D: "\\r",
    0x0B: "\\v",
    0x0C: "\\f",
}
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SI_CHILD = struct.Struct("<16xiIi")  # si_pid, si_uid, si_status
_SI_PID = struct.Struct("<16xiI")


def quoted(data: bytes, *, cut: bool = False) -> str:
    """A C string as strace writes it: octal for what is no printable ASCII; `...` if it was cut."""
    parts = []
    for index, byte in enumerate(data):
        if byte in _ESCAPES:
            parts.append(_ESCAPES[byte])
        elif 0x20 <= byte < 0x7F:
            parts.append(chr(byte))
        else:
            digit_follows = index + 1 < len(data) and 0x30 <= data[index + 1] <= 0x39
            parts.append(f"\\{byte:03o}" if digit_follows else f"\\{byte:o}")
    return f'"{"".join(parts)}"' + ("..." if cut else "")


def siginfo_parts(raw: bytes, info: siginfo.SigInfo) -> list[str]:
    """Of a struct kernel_siginfo, what is behind its signal: `si_code=SI_USER`, `si_pid=7`."""
    parts = [f"si_code={code_name(info.signal, info.code) or info.code}"]
    if info.signal == signal.SIGCHLD and 0 < info.code <= 6:
        pid, uid, status = _SI_CHILD.unpack_from(raw)
        shown = str(status) if info.code == 1 else signal_name(status)
        return [*parts, f"si_pid={pid}", f"si_uid={uid}", f"si_status={shown}"]
    if info.syscall is not None:
        return [*parts, f"si_syscall={syscall_name(info.syscall) or info.syscall}"]
    if info.address is not None:
        return [*parts, f"si_addr={pointer(info.address)}"]
    if info.code <= 0:
        pid, uid = _SI_PID.unpack_from(raw)
        return [*parts, f"si_pid={pid}", f"si_uid={uid}"]
    return parts


def signed(word: int) -> str:
    """A C int."""
    low = word & 0xFFFFFFFF
    return str(low - (1 << 32) if low >> 31 else low)


def long(word: int, compat: bool) -> int:
    """A C long, of 32-bit code if `compat`."""
    bits = 32 if compat else 64
    return word - (1 << bits) if word >> (bits - 1) else word


def pointer(word: int) -> str:
    """An address."""
    return hex(word) if word else "NULL"


def text_or_pointer(word: int, text: Text | None) -> str:
    """A string or a buffer; its address if it is not known."""
    if text is None or text.data is None:
        return pointer(word)
    return quoted(text.data, cut=text.cut)


def wait_status(word: int, text: Text | None) -> str:
    """What wait4(2) has written; its address if that is not known."""
    if text is None or text.data is None or len(text.data) < 4:
        return pointer(word)
    status = int.from_bytes(text.data, "little")
    number = status & 0x7F
    if status == 0xFFFF:
        return "[{WIFCONTINUED(s)}]"
    if status & 0xFF == 0x7F:
        return f"[{{WIFSTOPPED(s) && WSTOPSIG(s) == {signal_name(status >> 8 & 0xFF)}}}]"
    if not number:
        return f"[{{WIFEXITED(s) && WEXITSTATUS(s) == {status >> 8 & 0xFF}}}]"
    dumped = " && WCOREDUMP(s)" if status & 0x80 else ""
    return f"[{{WIFSIGNALED(s) && WTERMSIG(s) == {signal_name(number)}{dumped}}}]"


def integers(word: int, text: Text | None, size: int) -> str:
    """An array of C ints of `size` bytes; its address if it is not known."""
    if text is None or text.data is None or len(text.data) < size:
        return pointer(word)
    return f"[{', '.join(str(n) for (n,) in struct.iter_unpack('<i', text.data))}]"


def socket_address(word: int, text: Text | None) -> str:
    """A struct sockaddr, of the families that have names for people; else its bytes."""
    if text is None or text.data is None or len(text.data) < 2 or text.cut:
        return text_or_pointer(word, text)
    data, family = text.data, int.from_bytes(text.data[:2], "little")
    if family == _AF_UNIX:
        path = data[2:]
        if path[:1] == b"\0":
            return f"{{sa_family=AF_UNIX, sun_path=@{quoted(path[1:])}}}"
        name = quoted(path.partition(b"\0")[0])
        return f"{{sa_family=AF_UNIX, sun_path={name}}}"
    if family == _AF_INET and len(data) >= 8:
        port = int.from_bytes(data[2:4], "big")
        host = ".".join(map(str, data[4:8]))
        return f'{{sa_family=AF_INET, sin_port=htons({port}), sin_addr=inet_addr("{host}")}}'
    return quoted(data)
