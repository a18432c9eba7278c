/*
 * Random scripts, each carried out on a real eventfd, a doorbell_event and a doorbell_shared_event side by side: after
 * each call the results, the counts and what poll(2) says are the same.
 *
 *   fuzz SECONDS [SEED]
 */
#include "test.h"
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sys/eventfd.h>

static uint64_t state;

static uint64_t random64(void) /* xorshift64* */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
}

/* A number whose sums are near the edges. */
static uint64_t some_number(uint64_t count)
{
    switch (random64() % 8) {
    case 0: return random64() % 4;
    case 1: return UINT64_MAX - random64() % 4;
    case 2: return UINT64_MAX - count - random64() % 4; /* fits, or not */
    case 3: return UINT64_MAX - count + random64() % 4;
    case 4: return ((uint64_t)1 << random64() % 64) - random64() % 2;
    default: return random64() >> random64() % 64;
    }
}

/* What one call came to. */
struct outcome {
    int result;
    uint64_t value;
};

#define OUTCOME(call) (outcome.result = (call), outcome)

/* Ours say in the result what a system call says in errno. */
static int in_result(int result)
{
    return result == -1 ? -errno : result;
}

/* An eventfd has no timed calls; those with a limit of 0 are its calls with another errno. */
static struct outcome timed_out(struct outcome outcome)
{
    if (outcome.result == -EAGAIN)
        outcome.result = -ETIMEDOUT;
    return outcome;
}

static bool same(struct outcome a, struct outcome b)
{
    return a.result == b.result && a.value == b.value;
}

static uint64_t scripts, calls;

static void script(uint64_t seed)
{
    bool semaphore = random64() % 2;
    uint32_t flags = semaphore ? DOORBELL_SEMAPHORE : 0;
    unsigned initial = (unsigned)(random64() >> random64() % 64);
    int memfd, fd = eventfd(initial, EFD_NONBLOCK | EFD_CLOEXEC | (semaphore ? EFD_SEMAPHORE : 0));
    doorbell_event *event = doorbell_event_new(initial, flags);
    doorbell_shared_event *shared = doorbell_shared_event_create(initial, flags, &memfd);
    CHECK(fd >= 0 && event && shared && close(memfd) == 0);
    uint64_t count = initial;

    for (int length = (int)(random64() % 64); length > 0; length--) {
        struct outcome outcome = {0, 0}, kernel, ours, theirs;
        uint64_t n = some_number(count);
        unsigned what = random64() % 8;
        switch (what) {
        case 0:
        case 1:
        case 2:
            kernel = OUTCOME(in_result(eventfd_write(fd, n)));
            ours = OUTCOME(doorbell_event_try_write(event, n));
            theirs = OUTCOME(doorbell_shared_event_try_write(shared, n));
            count += kernel.result == 0 ? n : 0;
            break;
        case 3:
            kernel = timed_out(OUTCOME(in_result(eventfd_write(fd, n))));
            ours = OUTCOME(doorbell_event_write_timeout(event, n, 0));
            theirs = OUTCOME(doorbell_shared_event_write_timeout(shared, n, 0));
            count += kernel.result == 0 ? n : 0;
            break;
        case 4:
            /* A signal is a write where there is room for it; the overflow state is beyond a program's eventfd. */
            n = count < FULL ? n % (FULL - count) : 0;
            kernel = OUTCOME(in_result(eventfd_write(fd, n)));
            ours = OUTCOME((doorbell_event_signal_n(event, n), 0));
            theirs = OUTCOME((doorbell_shared_event_signal_n(shared, n), 0));
            count += n;
            break;
        case 5:
            kernel = OUTCOME(in_result(eventfd_read(fd, &outcome.value)));
            kernel.value = outcome.value, outcome.value = 0;
            ours = OUTCOME(doorbell_event_read_timeout(event, &outcome.value, 0));
            ours.value = outcome.value, outcome.value = 0;
            theirs = OUTCOME(doorbell_shared_event_read_timeout(shared, &outcome.value, 0));
            theirs.value = outcome.value;
            kernel = timed_out(kernel);
            count -= kernel.result == 0 ? kernel.value : 0;
            break;
        default:
            kernel = OUTCOME(in_result(eventfd_read(fd, &outcome.value)));
            kernel.value = outcome.value, outcome.value = 0;
            ours = OUTCOME(doorbell_event_try_read(event, &outcome.value));
            ours.value = outcome.value, outcome.value = 0;
            theirs = OUTCOME(doorbell_shared_event_try_read(shared, &outcome.value));
            theirs.value = outcome.value;
            count -= kernel.result == 0 ? kernel.value : 0;
            break;
        }
        struct pollfd watched = {.fd = fd, .events = POLLIN | POLLOUT};
        CHECK(poll(&watched, 1, 0) >= 0);
        uint32_t ready = (uint32_t)watched.revents;
        bool readable = doorbell_event_wait_readable(event, 0) == 0;
        if (!same(kernel, ours) || !same(kernel, theirs) || doorbell_event_count(event) != count ||
            doorbell_shared_event_count(shared) != count || doorbell_event_readiness(event) != ready ||
            doorbell_shared_event_readiness(shared) != ready || readable != (count > 0)) {
            fprintf(stderr, "seed %" PRIu64 ", call %u with %" PRIu64 " at %" PRIu64 ": %d, %" PRIu64
                            " of the kernel, %d, %" PRIu64 " and %d, %" PRIu64 "\n",
                    seed, what, n, count, kernel.result, kernel.value, ours.result, ours.value,
                    theirs.result, theirs.value);
            abort();
        }
        calls++;
    }
    doorbell_event_unref(event);
    doorbell_shared_event_free(shared);
    CHECK(close(fd) == 0);
    scripts++;
}

int main(int argc, char **argv)
{
    int64_t seconds = argc > 1 ? atoll(argv[1]) : 1;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)now_ns();
    int64_t end = now_ns() + seconds * 1000000000;
    alarm((unsigned)seconds + LIMIT_SECONDS);
    printf("fuzz: from seed %" PRIu64 "\n", seed);
    do {
        state = seed * 2 + 1;
        random64(), random64();
        script(seed++);
    } while (now_ns() < end && argc <= 2);
    printf("fuzz: %" PRIu64 " scripts, %" PRIu64 " calls: 1 passed, 0 failed\n", scripts, calls);
    return 0;
}
