/* What the tests share: checks, threads, and the look at a thread that sleeps. */
#ifndef TEST_H
#define TEST_H

#define _GNU_SOURCE /* so this is the first file that each test includes */
#include <doorbell.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A watchdog: a test that hangs dies by SIGALRM. Valgrind is slow. */
enum { LIMIT_SECONDS = 120 };

#define FULL (UINT64_MAX - 1)

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: not so: %s (errno %d)\n", __FILE__, __LINE__, __func__,    \
                    #condition, errno);                                                            \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* That a call fails, and how. */
#define FAILS(call, number) CHECK((call) == -(number))

#define FAILS_NULL(call, number)                                                                   \
    do {                                                                                           \
        errno = 0;                                                                                 \
        CHECK((call) == NULL);                                                                     \
        CHECK(errno == (number));                                                                  \
    } while (0)

static inline void begin_tests(void)
{
    alarm(LIMIT_SECONDS);
}

static inline void sleep_ns(long ns)
{
    struct timespec time = {.tv_nsec = ns};
    nanosleep(&time, NULL);
}

static inline int64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* A call on a thread of its own. */
struct caller {
    pthread_t thread;
    void *(*body)(void *);
    void *argument;
    int tid; /* 0 until it runs */
};

static inline void *caller_run(void *argument)
{
    struct caller *caller = argument;
    __atomic_store_n(&caller->tid, (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
    return caller->body(caller->argument);
}

static inline void caller_start(struct caller *caller, void *(*body)(void *), void *argument)
{
    *caller = (struct caller){.body = body, .argument = argument};
    CHECK(pthread_create(&caller->thread, NULL, caller_run, caller) == 0);
}

/* Waits until the thread sleeps in the kernel, as /proc says. Many looks in a row, for it may sleep for other reasons:
 * a lock of the memory allocator, or valgrind's. */
static inline void caller_wait_asleep(struct caller *caller)
{
    int asleep = 0;
    while (asleep < 20) {
        int tid = __atomic_load_n(&caller->tid, __ATOMIC_ACQUIRE);
        char path[64], line[256], state = 'R';
        snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
        FILE *file = tid ? fopen(path, "r") : NULL;
        if (file) {
            if (fgets(line, sizeof line, file))
                sscanf(strrchr(line, ')') + 1, " %c", &state);
            fclose(file);
        }
        asleep = state == 'S' ? asleep + 1 : 0;
        sleep_ns(200000);
    }
}

static inline void caller_start_asleep(struct caller *caller, void *(*body)(void *), void *argument)
{
    caller_start(caller, body, argument);
    caller_wait_asleep(caller);
}

static inline void *caller_join(struct caller *caller)
{
    void *result;
    CHECK(pthread_join(caller->thread, &result) == 0);
    return result;
}

#endif
