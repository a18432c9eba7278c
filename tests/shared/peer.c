/* A peer of doorbell::SharedEvent, as src/shared.rs describes one. Standard input is a file with two events: from the first
   it reads so many times as it is told, and signals each number on with the second, a semaphore; then it reads as many
   times more. */

#include <errno.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct waiters {
    _Atomic uint32_t state, generation;
};

struct event {
    uint32_t magic;
    uint16_t version, size;
    _Atomic uint64_t count;
    struct waiters readers, writers;
    uint32_t mode;
    uint32_t reserved[7];
};

_Static_assert(sizeof(struct event) == 64, "one cache line");

enum { ANNOUNCED = 1, WAITER = 1 << 4, CLAIMED = 1 << 26, MOST_CLAIMED = 63 };

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
    return syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

static void notify(struct waiters *waiters, int number, int each)
{
    uint32_t state = waiters->state;
    while (state & ANNOUNCED) {
        uint32_t rest = state % CLAIMED & ~ANNOUNCED, threads = rest / WAITER;
        uint32_t most = threads < MOST_CLAIMED ? threads : MOST_CLAIMED;
        uint64_t claimed = (uint64_t)(state / CLAIMED) + number;
        int wake = number;
        if (each && claimed < most) {
            rest |= ANNOUNCED | (uint32_t)claimed * CLAIMED;
        } else if (each) {
            rest |= most * CLAIMED;
            wake = INT32_MAX;
        }
        if (atomic_compare_exchange_weak(&waiters->state, &state, rest)) {
            waiters->generation++;
            futex(&waiters->generation, FUTEX_WAKE, wake, NULL);
            return;
        }
    }
}

static void event_signal(struct event *event, uint64_t n)
{
    uint64_t count = event->count;
    while (!atomic_compare_exchange_weak(&event->count, &count, count + n < n ? UINT64_MAX : count + n))
        ;
    notify(&event->readers, event->mode && n < INT32_MAX ? n : event->mode ? INT32_MAX : 1, event->mode);
}

static uint64_t try_read(struct event *event)
{
    uint64_t count = event->count;
    if (!event->mode)
        return count ? atomic_exchange(&event->count, 0) : 0;
    while (count && !atomic_compare_exchange_weak(&event->count, &count, count - 1))
        ;
    return count != 0;
}

static uint64_t event_read(struct event *event)
{
    static const struct timespec look_up = { .tv_nsec = 250000000 };
    struct waiters *readers = &event->readers;
    uint64_t value = try_read(event);
    if (!value) {
        readers->state += WAITER;
        uint32_t generation = readers->generation;
        for (;;) {
            atomic_fetch_or(&readers->state, ANNOUNCED);
            if ((value = try_read(event)))
                break;
            futex(&readers->generation, FUTEX_WAIT, generation, &look_up);
            generation = readers->generation;
            if ((value = try_read(event)))
                break;
        }
        uint32_t state = readers->state, left;
        do {
            left = (state - WAITER - (state >= CLAIMED ? CLAIMED : 0)) & ~ANNOUNCED;
            if (left % CLAIMED >= WAITER)
                left |= ANNOUNCED;
            else
                left %= CLAIMED;
        } while (!atomic_compare_exchange_weak(&readers->state, &state, left));
        uint64_t count = event->count;
        if (left % CLAIMED >= WAITER && count)
            notify(readers, event->mode && count < INT32_MAX ? count : event->mode ? INT32_MAX : 1, event->mode);
    }
    notify(&event->writers, INT32_MAX, 0);
    return value;
}

int main(int argc, char **argv)
{
    struct event *events = mmap(NULL, 2 * sizeof *events, PROT_READ | PROT_WRITE, MAP_SHARED, STDIN_FILENO, 0);
    if (argc != 2 || events == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    for (int i = 0; i < 2; i++) {
        if (events[i].magic != 0x6c656244 || events[i].version != 1 || events[i].size != sizeof *events) {
            fprintf(stderr, "no event\n");
            return 1;
        }
    }
    long rounds = atol(argv[1]);
    for (long i = 0; i < rounds; i++)
        event_signal(&events[1], event_read(&events[0]));
    for (long i = 0; i < rounds; i++) {
        uint64_t value = event_read(&events[0]);
        if (value != UINT64_MAX - 1) {
            fprintf(stderr, "read %llu\n", (unsigned long long)value);
            return 1;
        }
    }
    return 0;
}
