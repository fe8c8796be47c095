"""What the arguments of each system call are: one line for a call, one word for an argument.

The kernel's headers number the calls but do not declare them, so this table is written by hand,
from the manual pages of section 2 and <linux/syscalls.h>. A word is one of

    d u l x p          an int, an unsigned one, a signed word, bits in hexadecimal, an address
    size               a length in bytes
    mode               permissions, in octal
    path str           a text up to its zero, known at the entry
    in:N               a buffer with its length in argument N (from 0), known at the entry
    out                a buffer that has as many bytes as the result says, known at the exit
    ints:N             N bytes of 32-bit numbers that the call has answered
    status             a wait status that the call has answered
    addr:N             a struct sockaddr with its length in argument N, known at the entry
    others             the name of a group of constants (`symbols`); `descriptor` is of `open`

`-> x` and `-> o`: the result is an address, or permissions. A call of 32-bit code has the line of
its name; a name that is not here is shown with six words in hexadecimal.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

_TABLE = """
read d out size
write d in:2 size
open path open mode
close d
stat path p
fstat d p
lstat path p
poll p u d
lseek d l whence -> l
mmap p size prot map d x -> x
mmap2 p size prot map d x -> x
mprotect p size prot
munmap p size
brk p -> x
rt_sigaction signal p p size
rt_sigprocmask sigmask p p size
rt_sigreturn
ioctl d ioctl x
pread64 d out size l
pwrite64 d in:2 size l
readv d p d
writev d p d
access path access
pipe ints:8
select d p p p p
sched_yield
mremap p size size mremap p -> x
msync p size msync
mincore p size p
madvise p size madvise
shmget d size x
shmat d p x -> x
shmctl d d p
dup d
dup2 d d
pause
nanosleep p p
getitimer itimer p
alarm u
setitimer itimer p p
getpid
sendfile d d p size
socket family socket d
connect d addr:2 d
accept d p p
sendto d in:2 size msg p d
recvfrom d out size msg p p
sendmsg d p msg
recvmsg d p msg
shutdown d shutdown
bind d addr:2 d
listen d d
getsockname d p p
getpeername d p p
socketpair family socket d ints:8
setsockopt d sol d in:4 d
getsockopt d sol d p p
clone clone p p p x
fork
vfork
execve path p p
exit d
wait4 d status wait p
waitpid d status wait
kill d signal
uname p
semget d d x
semop d p size
semctl d d d x
shmdt p
msgget d x
msgsnd d p size x
msgrcv d p size l x
msgctl d d p
fcntl d fcntl x
fcntl64 d fcntl x
flock d flock
fsync d
fdatasync d
truncate path l
ftruncate d l
getdents d p u
getcwd out size
chdir path
fchdir d
rename path path
mkdir path mode
rmdir path
creat path mode
link path path
unlink path
symlink path path
readlink path out size
chmod path mode
fchmod d mode
chown path d d
fchown d d d
lchown path d d
umask mode -> o
gettimeofday p p
getrlimit rlimit p
getrusage rusage p
sysinfo p
times p
ptrace ptrace d p x
getuid
syslog d p d
getgid
setuid d
setgid d
geteuid
getegid
setpgid d d
getppid
getpgrp
setsid
setreuid d d
setregid d d
getgroups d p
setgroups d p
setresuid d d d
getresuid p p p
setresgid d d d
getresgid p p p
getpgid d
setfsuid d
setfsgid d
getsid d
capget p p
capset p p
rt_sigpending p size
rt_sigtimedwait p p p size
rt_sigqueueinfo d signal p
rt_sigsuspend p size
sigaltstack p p
utime path p
mknod path mode x
personality x
ustat x p
statfs path p
fstatfs d p
sysfs d x x
getpriority priority d
setpriority priority d d
sched_setparam d p
sched_getparam d p
sched_setscheduler d sched p
sched_getscheduler d
sched_get_priority_max sched
sched_get_priority_min sched
sched_rr_get_interval d p
mlock p size
munlock p size
mlockall x
munlockall
vhangup
modify_ldt d p size
pivot_root path path
prctl prctl x x x x
arch_prctl arch_prctl p
adjtimex p
setrlimit rlimit p
chroot path
sync
acct path
settimeofday p p
mount path path str mount p
umount2 path umount
swapon path x
swapoff path
reboot x x x p
sethostname in:1 size
setdomainname in:1 size
iopl d
ioperm x x d
init_module p size str
delete_module str x
quotactl x str d p
gettid
readahead d l size
setxattr path str in:3 size x
lsetxattr path str in:3 size x
fsetxattr d str in:3 size x
getxattr path str out size
lgetxattr path str out size
fgetxattr d str out size
listxattr path out size
llistxattr path out size
flistxattr d out size
removexattr path str
lremovexattr path str
fremovexattr d str
tkill d signal
time p
futex p futex u p p x
sched_setaffinity d size p
sched_getaffinity d size p
set_thread_area p
io_setup u p
io_destroy x
io_getevents x l l p p
io_submit x l p
io_cancel x p p
get_thread_area p
epoll_create d
remap_file_pages p size prot x map
getdents64 d p u
set_tid_address p
restart_syscall
semtimedop d p size p
fadvise64 d l size fadvise
timer_create clock p p
timer_settime d timer p p
timer_gettime d p
timer_getoverrun d
timer_delete d
clock_settime clock p
clock_gettime clock p
clock_getres clock p
clock_nanosleep clock timer p p
exit_group d
epoll_wait d p d d
epoll_ctl d epoll_ctl d p
tgkill d d signal
utimes path p
mbind p size d p u x
set_mempolicy d p u
get_mempolicy p p u p x
mq_open str open mode p
mq_unlink str
mq_timedsend d in:2 size u p
mq_timedreceive d out size p p
mq_notify d p
mq_getsetattr d p p
kexec_load p u p x
waitid waitid d p wait p
add_key str str in:3 size d
request_key str str str d
keyctl d x x x x
ioprio_set d d x
ioprio_get d d
inotify_init
inotify_add_watch d path inotify_mask
inotify_rm_watch d d
migrate_pages d u p p
openat dirfd path open mode
mkdirat dirfd path mode
mknodat dirfd path mode x
fchownat dirfd path d d at
futimesat dirfd path p
newfstatat dirfd path p at
fstatat64 dirfd path p at
unlinkat dirfd path unlinkat
renameat dirfd path dirfd path
linkat dirfd path dirfd path at
symlinkat path dirfd path
readlinkat dirfd path out size
fchmodat dirfd path mode
faccessat dirfd path access
pselect6 d p p p p p
ppoll p u p p size
unshare clone
set_robust_list p size
get_robust_list d p p
splice d p d p size splice
tee d d size splice
sync_file_range d l l x
vmsplice d p u splice
move_pages d u p p p x
utimensat dirfd path p at
epoll_pwait d p d d p size
signalfd d p size
timerfd_create clock timerfd
eventfd u
fallocate d fallocate l l
timerfd_settime d timer p p
timerfd_gettime d p
accept4 d p p accept4
signalfd4 d p size x
eventfd2 u eventfd
epoll_create1 epoll_create
dup3 d d descriptor
pipe2 ints:8 descriptor
inotify_init1 inotify
preadv d p u l l
pwritev d p u l l
rt_tgsigqueueinfo d d signal p
perf_event_open p d d d x
recvmmsg d p u msg p
fanotify_init x x
fanotify_mark d x x dirfd path
prlimit64 d rlimit p p
name_to_handle_at dirfd path p p at
open_by_handle_at d p open
clock_adjtime clock p
syncfs d
sendmmsg d p u msg
setns d clone
getcpu p p p
process_vm_readv d p u p u x
process_vm_writev d p u p u x
kcmp d d d x x
finit_module d str x
sched_setattr d p x
sched_getattr d p u x
renameat2 dirfd path dirfd path rename
seccomp seccomp x p
getrandom out size random
memfd_create str memfd
kexec_file_load d d size str x
bpf d p u
execveat dirfd path p p at
userfaultfd x
membarrier d x d
mlock2 p size x
copy_file_range d p d p size x
preadv2 d p u l l x
pwritev2 d p u l l x
pkey_mprotect p size prot d
pkey_alloc x x
pkey_free d
statx dirfd path at statx p
io_pgetevents x l l p p p
rseq p x d x
uretprobe
pidfd_send_signal d signal p x
io_uring_setup u p
io_uring_enter d u u x p size
io_uring_register d u p u
open_tree dirfd path x
move_mount dirfd path dirfd path x
fsopen str x
fsconfig d d str p d
fsmount d x x
fspick dirfd path x
pidfd_open d x
clone3 p size
close_range u u close_range
openat2 dirfd path p size
pidfd_getfd d d x
faccessat2 dirfd path access at
process_madvise d p size madvise x
epoll_pwait2 d p d p p size
mount_setattr dirfd path x p size
quotactl_fd d x d p
landlock_create_ruleset p size x
landlock_add_rule d d p x
landlock_restrict_self d x
memfd_secret x
process_mrelease d x
futex_waitv p u x p clock
set_mempolicy_home_node p size d x
cachestat d p p x
fchmodat2 dirfd path mode at
map_shadow_stack p size x -> x
futex_wake p x d x
futex_wait p x x x p clock
futex_requeue p x d d
statmount p p size x
listmount p p size x
lsm_get_self_attr u p p x
lsm_set_self_attr u p u x
lsm_list_modules p p x
mseal p size x
setxattrat dirfd path at str p size
getxattrat dirfd path at str p size
listxattrat dirfd path at p size
removexattrat dirfd path at str
open_tree_attr dirfd path x p size
file_getattr dirfd path p size at
file_setattr dirfd path p size at
"""


class Signature(NamedTuple):
    """`kinds` and `sizes` go together; the size is what stands behind a word's colon, or 0."""

    kinds: tuple[str, ...]
    sizes: tuple[int, ...]
    result: str  # "d", "x", "o" or "l"


_UNKNOWN = Signature(("x",) * 6, (0,) * 6, "d")


@cache
def _signatures() -> dict[str, Signature]:
    return dict(_parsed(line) for line in _TABLE.strip().splitlines())


def _parsed(line: str) -> tuple[str, Signature]:
    call, _, result = line.partition(" -> ")
    name, *words = call.split()
    parts = [word.partition(":") for word in words]
    kinds = tuple(kind for kind, _, _ in parts)
    return name, Signature(kinds, tuple(int(size or 0) for _, _, size in parts), result or "d")


def signature(name: str | None) -> Signature:
    """That of a call by its name; six words in hexadecimal for one that is not known."""
    return _signatures().get(name or "", _UNKNOWN)


def kinds() -> set[str]:
    """All words that the table uses."""
    return {kind for found in _signatures().values() for kind in found.kinds}
