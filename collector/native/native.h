/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands between a crash and the restart of its service, without the interpreter: take the
 * process from the kernel, gather what its end would destroy, pin its memory, let it go. Python
 * decides where this may not (handoff.h says when), and does all that comes afterwards.
 *
 * Why not Python: an agent that has been idle runs a thousand calls whose code and data are in no
 * cache any more, 6 ms; this takes 0.7.
 *
 * Everything read here comes from a hostile process. Nothing of it is decoded but numbers of
 * /proc, of the task iterators and of a robust list; each is bounded.
 *
 * This header is what the files of the library know of each other.
 */
#ifndef COREWARD_NATIVE_H
#define COREWARD_NATIVE_H

#include <linux/types.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coreward.h"
#include "handoff.h"

#define AREA (1UL << 30)     /* address space for one process; memory only where it is written */
#define TEXT (1UL << 20)     /* of it for files of /proc, but for maps; then threads, or maps, to */
			     /* its half; then mappings; exit words in the last eighth */
#define CHUNK (1UL << 18)    /* the kernel fills at most 32 KiB of it per read */
#define MAX_SHARED 1024      /* descriptors for one process */
#define STAT_SIZE 2048       /* more than /proc/PID/stat has */
#define MOMENT_MS 5          /* a hand-off follows its signal within so long, if there is one */

struct robust_head {
	uint64_t next;             /* Documentation/locking/robust-futexes.rst */
	int64_t offset;
	uint64_t pending;
};

/* watch.c */
void watch_begin(struct orders *o, struct taken *t, int hold);
bool watch_move(struct taken *t, int hold);
bool watch_owner(struct taken *t);
bool watch_hand_on(struct taken *t);
bool watch_end(int watch);
bool watch_cut(struct orders *o, int nothing, struct taken *t);
bool watch_any(struct orders *o);

/* accept.c */
int64_t now_ns(void);
void reset(struct taken *t);
void forget(int fd);
__attribute__((format(printf, 2, 3))) bool because(struct taken *t, const char *format, ...);
int open_pidfd(int pid);
bool peer(int conn, int *pidfd, struct taken *t);
bool identify(struct taken *t, int tid);
int wait_for(int listener, struct taken *t, int *conn);

/* priority.c */
void hurry(int priority, int nice);
void calm(int tid);
void make_lock(pthread_mutex_t *lock);

/* owner.c */
uint64_t owner_of(int pid, uint32_t uid, uint64_t cgroup);

/* counted.c */
bool was_counted(const struct orders *o, const struct taken *t);
bool is_armed(const struct orders *o, const struct taken *t);

/* spared.c */
void note_spared(const struct taken *t);

/* accept_socket.c, accept_pipe.c */
int take_socket(int conn, struct orders *o, struct taken *t);
int take_pipe(int conn, struct orders *o, struct taken *t);
bool parse_line(struct taken *t, int *tid, int *pidfd);

/* proc.c */
bool read_text(int fd, size_t limit, char *to, size_t room, struct bytes *text);
char *text_of(struct taken *t, int which, char *to, size_t size);
bool resident(struct taken *t, uint64_t address, size_t size);
uint64_t start_ticks(const char *stat);
int64_t parent_of(const char *stat);
bool has_arguments(struct taken *t, const char *stat);
int64_t field(const char *text, const char *name);
bool small_file(const char *path, char *to, size_t size);
bool is_there(struct taken *t);

/* area.c */
bool make_area(struct taken *t);

/* gather.c, and its parts: process, descriptors, iterate, shared, exit_words, headroom, bidders, admit,
 * pin */
bool gather(struct orders *o, struct taken *t);
void discard(struct taken *t);
bool open_process(struct taken *t, bool maps);
struct bytes iterate(int program, int pid, bool single, char *to, size_t room);
void open_shared(struct taken *t);
void list_descriptors(int folder, char *to, size_t room, struct bytes *text);
void keep_words(struct taken *t);
void keep_robust(struct taken *t, uint64_t head, const struct robust_head *list);
bool find_levels(struct taken *t, const char *groups, int64_t enough);
bool is_crowded(struct orders *o, const struct taken *t);
bool is_like(const char *text, const char *pattern);
bool may_bid(struct orders *o, struct taken *t);
bool admit(struct orders *o, struct taken *t);
uint64_t readable(struct taken *t);
bool pin_memory(struct orders *o, struct taken *t);
void unpin(struct orders *o, struct taken *t);

#endif
