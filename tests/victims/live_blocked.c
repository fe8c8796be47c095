// One thread per way to block in the kernel, each with counters of how its call came back.
//
//     live_blocked FILE [SPINNERS [EXTRA]]
//
// FILE becomes an array of struct row, shared and up to date at any time. EXTRA threads block in
// epoll_wait and futex by turns, so that a process of many threads has both. A thread whose call
// came back counts it and calls again: whoever disturbs a thread is seen in its row. It ends when
// its standard input does. Needs root, for an IPC namespace of its own.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct row {
	char name[24];
	uint64_t tid;
	uint64_t eintr;   // times that the call failed with EINTR
	uint64_t other;   // times that it came back otherwise
	int64_t last;     // its last other result, or minus its errno
};

static const struct timespec long_time = {1000, 0};
static sigset_t usr1;
static struct sockaddr_un busy; // a listener that has no room for more
static socklen_t busy_size = sizeof busy;

// What the threads wait for never comes; each makes its own.
static int epoll_on_pipe(void)
{
	int ends[2], e = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN};
	pipe(ends);
	epoll_ctl(e, EPOLL_CTL_ADD, ends[0], &event);
	return e;
}

static int quiet_pipe(void)
{
	int ends[2];
	pipe(ends);
	return ends[0];
}

static int timed_socket(int option)
{
	int ends[2];
	struct timeval limit = {1000, 0};
	socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
	setsockopt(ends[0], SOL_SOCKET, option, &limit, sizeof limit);
	return ends[0];
}

static int full_socket(void)
{
	static char data[1 << 16];
	int s = timed_socket(SO_SNDTIMEO);
	while (send(s, data, sizeof data, MSG_DONTWAIT) > 0)
		;
	return s;
}

static int listener(int timed)
{
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	struct timeval limit = {1000, 0};
	struct sockaddr_un any = {.sun_family = AF_UNIX};
	bind(s, (struct sockaddr *)&any, sizeof(sa_family_t));
	listen(s, 0);
	if (timed)
		setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	return s;
}

static int crowded(void)
{
	struct timeval limit = {1000, 0};
	int s = listener(0);
	getsockname(s, (struct sockaddr *)&busy, &busy_size);
	connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&busy, busy_size);
	s = socket(AF_UNIX, SOCK_STREAM, 0);
	setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	return s;
}

static int uring(void)
{
	static struct io_uring_params parameters;
	return syscall(SYS_io_uring_setup, 4, &parameters);
}

static int message_queue(void)
{
	struct mq_attr size = {.mq_maxmsg = 1, .mq_msgsize = 8};
	char name[32];
	int q;
	snprintf(name, sizeof name, "/live-%d", getpid());
	q = mq_open(name, O_RDONLY | O_CREAT, 0600, &size);
	mq_unlink(name);
	return q;
}

static int locked_file(void)
{
	char name[] = "/tmp/live-lock-XXXXXX";
	int owner = mkstemp(name), p = open(name, O_RDONLY);
	unlink(name);
	flock(owner, LOCK_EX);
	return p;
}

static int sleeping_child(void)
{
	int child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			sleep(1000);
	}
	return child;
}

static int nothing(void) { return 0; }
static int recv_socket(void) { return timed_socket(SO_RCVTIMEO); }
static int plain_socket(void) { return timed_socket(SO_SNDTIMEO); }
static int plain_listener(void) { return listener(0); }
static int timed_listener(void) { return listener(1); }
static int semaphore(void) { return semget(IPC_PRIVATE, 1, 0600); }
static int sysv_queue(void) { return msgget(IPC_PRIVATE, 0600); }
static int an_eventfd(void) { return eventfd(0, 0); }
static int a_timerfd(void) { return timerfd_create(CLOCK_MONOTONIC, 0); }
static int a_signalfd(void) { return signalfd(-1, &usr1, 0); }
static int an_inotify(void) { return inotify_init(); }

static struct epoll_event event[1];
static struct sembuf down = {0, -1, 0};
static char byte[128];
static struct iovec vector = {byte, 1};
static struct mmsghdr message = {.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}};
static uint32_t word;

#define CALL(NAME, ...) \
	static long NAME##_call(int p) { (void)p; return __VA_ARGS__; }
CALL(futex, syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL))
CALL(futex_timed, syscall(SYS_futex, &word, FUTEX_WAIT, 0, &long_time))
CALL(nanosleep, nanosleep(&long_time, NULL))
CALL(clock_nanosleep, syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &long_time, NULL))
CALL(read, read(p, byte, sizeof byte))
CALL(poll, poll(&(struct pollfd){.fd = p, .events = POLLIN}, 1, -1))
CALL(poll_timed, poll(&(struct pollfd){.fd = p, .events = POLLIN}, 1, 1000000))
CALL(ppoll, ppoll(&(struct pollfd){.fd = p, .events = POLLIN}, 1, &long_time, &usr1))
CALL(select, select(p + 1, &(fd_set){{[0] = 0}}, 0, 0, &(struct timeval){1000, 0}))
CALL(pselect, pselect(p + 1, &(fd_set){{[0] = 0}}, 0, 0, &long_time, &usr1))
CALL(epoll_wait, epoll_wait(p, event, 1, -1))
CALL(epoll_wait_timed, epoll_wait(p, event, 1, 1000000))
CALL(epoll_pwait, epoll_pwait(p, event, 1, -1, &usr1))
CALL(epoll_pwait2, syscall(SYS_epoll_pwait2, p, event, 1, &long_time, &usr1, 8))
CALL(accept, accept(p, 0, 0))
CALL(accept4, accept4(p, 0, 0, SOCK_CLOEXEC))
CALL(recv, recv(p, byte, 1, 0))
CALL(recvmsg, recvmsg(p, &message.msg_hdr, 0))
CALL(recvmmsg, recvmmsg(p, &message, 1, 0, 0))
CALL(send, send(p, byte, 1, 0))
CALL(sendmsg, sendmsg(p, &message.msg_hdr, 0))
CALL(write, write(p, byte, 1))
CALL(connect, connect(p, (struct sockaddr *)&busy, busy_size))
CALL(semop, semop(p, &down, 1))
CALL(semtimedop, semtimedop(p, &down, 1, &long_time))
CALL(msgrcv, msgrcv(p, byte, 0, 0, 0))
CALL(mq_receive, mq_receive(p, byte, 8, 0))
CALL(sigwaitinfo, sigwaitinfo(&usr1, NULL))
CALL(sigtimedwait, sigtimedwait(&usr1, NULL, &long_time))
CALL(pause, pause())
CALL(sigsuspend, sigsuspend(&usr1))
CALL(waitpid, waitpid(p, 0, 0))
CALL(io_uring_enter, syscall(SYS_io_uring_enter, p, 0, 1, IORING_ENTER_GETEVENTS, 0, 0))
CALL(flock, flock(p, LOCK_EX))

static long io_getevents_call(int p)
{
	static aio_context_t context;
	struct io_event done;
	(void)p;
	if (!context)
		syscall(SYS_io_setup, 4, &context);
	return syscall(SYS_io_getevents, context, 1, 1, &done, 0);
}

static struct kind { const char *name; int (*prepare)(void); long (*call)(int); } kinds[] = {
	{"futex", nothing, futex_call},
	{"epoll_wait", epoll_on_pipe, epoll_wait_call},
	{"futex_timed", nothing, futex_timed_call},
	{"nanosleep", nothing, nanosleep_call},
	{"clock_nanosleep", nothing, clock_nanosleep_call},
	{"read_pipe", quiet_pipe, read_call},
	{"read_eventfd", an_eventfd, read_call},
	{"read_timerfd", a_timerfd, read_call},
	{"read_signalfd", a_signalfd, read_call},
	{"read_inotify", an_inotify, read_call},
	{"poll", quiet_pipe, poll_call},
	{"poll_timed", quiet_pipe, poll_timed_call},
	{"ppoll", quiet_pipe, ppoll_call},
	{"select", quiet_pipe, select_call},
	{"pselect", quiet_pipe, pselect_call},
	{"epoll_wait_timed", epoll_on_pipe, epoll_wait_timed_call},
	{"epoll_pwait", epoll_on_pipe, epoll_pwait_call},
	{"epoll_pwait2", epoll_on_pipe, epoll_pwait2_call},
	{"accept", plain_listener, accept_call},
	{"accept_timed", timed_listener, accept_call},
	{"accept4_timed", timed_listener, accept4_call},
	{"recv", plain_socket, recv_call},
	{"recv_timed", recv_socket, recv_call},
	{"recvmsg_timed", recv_socket, recvmsg_call},
	{"recvmmsg_timed", recv_socket, recvmmsg_call},
	{"read_timed", recv_socket, read_call},
	{"send_timed", full_socket, send_call},
	{"sendmsg_timed", full_socket, sendmsg_call},
	{"write_timed", full_socket, write_call},
	{"connect_timed", crowded, connect_call},
	{"semop", semaphore, semop_call},
	{"semtimedop", semaphore, semtimedop_call},
	{"msgrcv", sysv_queue, msgrcv_call},
	{"mq_receive", message_queue, mq_receive_call},
	{"sigwaitinfo", nothing, sigwaitinfo_call},
	{"sigtimedwait", nothing, sigtimedwait_call},
	{"pause", nothing, pause_call},
	{"sigsuspend", nothing, sigsuspend_call},
	{"waitpid", sleeping_child, waitpid_call},
	{"io_getevents", nothing, io_getevents_call},
	{"io_uring_enter", uring, io_uring_enter_call},
	{"flock", locked_file, flock_call},
};
#define KINDS (sizeof kinds / sizeof *kinds)

struct start { struct kind *kind; struct row *row; };

static void *block(void *argument)
{
	struct start s = *(struct start *)argument;
	int p = s.kind->prepare();
	prctl(PR_SET_NAME, s.kind->name);
	__atomic_store_n(&s.row->tid, syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	for (;;) {
		long result = s.kind->call(p);
		if (result < 0 && errno == EINTR) {
			s.row->eintr++;
		} else {
			s.row->last = result < 0 ? -errno : result;
			s.row->other++;
			usleep(1000);
		}
	}
	return NULL;
}

static void *spin(void *argument)
{
	struct start s = *(struct start *)argument;
	prctl(PR_SET_NAME, "spin");
	nice(19);
	__atomic_store_n(&s.row->tid, syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	for (;;)
		s.row->other++;
	return NULL;
}

static void start(struct kind *kind, struct row *row)
{
	struct start s = {kind, row};
	pthread_attr_t attributes;
	pthread_t thread;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 256 << 10);
	strncpy(row->name, kind ? kind->name : "spin", sizeof row->name - 1);
	if (pthread_create(&thread, &attributes, kind ? block : spin, &s))
		exit(3);
	while (!__atomic_load_n(&row->tid, __ATOMIC_SEQ_CST))
		sched_yield();
}

int main(int argc, char **argv)
{
	size_t spinners = argc > 2 ? atoi(argv[2]) : 0, extra = argc > 3 ? atoi(argv[3]) : 0;
	size_t size = (KINDS + spinners + extra) * sizeof(struct row);
	int file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
	struct row *row;
	char end;

	// System V objects outlive their process, but not their namespace
	if (unshare(CLONE_NEWIPC))
		return 4;
	ftruncate(file, size);
	row = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, 0);
	for (size_t i = 0; i < KINDS; i++)
		start(&kinds[i], row++);
	for (size_t i = 0; i < spinners; i++)
		start(NULL, row++);
	for (size_t i = 0; i < extra; i++)
		start(&kinds[i % 2], row++);
	printf("ready\n");
	fflush(stdout);
	return read(0, &end, 1) != 0;
}
