/* A null dereference four frames deep in the worker thread `worker-3`.
 *
 * Prints "ready", waits for a newline on stdin, then dies by SIGSEGV; at once if told `now`. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct session {
	long requests;
};

static void count_request(struct session *session)
{
	session->requests = 1;
}

static void serve_request(struct session *session)
{
	count_request(session);
}

static void serve_client(struct session *session)
{
	serve_request(session);
}

static pthread_barrier_t started;

static void *worker(void *name)
{
	pthread_setname_np(pthread_self(), name);
	pthread_barrier_wait(&started);
	if (strcmp(name, "worker-3") == 0) {
		puts("ready");
		fflush(stdout);
		getchar();
		serve_client(NULL);
	}
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	static char names[4][16] = { "worker-1", "worker-2", "worker-3", "worker-4" };
	pthread_t threads[4];

	if (argc > 1 && strcmp(argv[1], "now") == 0)
		freopen("/dev/zero", "r", stdin);
	pthread_barrier_init(&started, NULL, 4);
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, worker, names[i]);
	pthread_join(threads[0], NULL);
	return 0;
}
