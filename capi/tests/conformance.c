/*
 * What eventfd(2) does, shown to hold for a real eventfd, for doorbell_event and for doorbell_shared_event, by the same
 * code through one table of function pointers. The names are those of the cases of tests/event/conformance.rs.
 */
#include "test.h"
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>

/* One kind of eventfd. Calls return 0 or the negative of an errno. */
struct kind {
    const char *name;
    bool kernel;
    void *(*make)(uint64_t initial, bool semaphore);
    void (*drop)(void *);
    int (*read)(void *, uint64_t *);
    int (*try_read)(void *, uint64_t *);
    int (*read_timeout)(void *, uint64_t *, int64_t);
    int (*write)(void *, uint64_t);
    int (*try_write)(void *, uint64_t);
    int (*write_timeout)(void *, uint64_t, int64_t);
    void (*signal)(void *);
    int (*wait_readable)(void *, int64_t);
    uint64_t (*count)(void *);
    uint32_t (*readiness)(void *);
};

/* The oracle: two descriptors of one eventfd would share O_NONBLOCK, so the flag is set for the length of a call. */
struct eventfd {
    int fd;
    pthread_mutex_t nonblocking;
};

static int kernel_read(void *it, uint64_t *value)
{
    struct eventfd *self = it;
    int result;
    do
        result = eventfd_read(self->fd, value) == 0 ? 0 : -errno;
    while (result == -EAGAIN); /* it began just when another thread had set O_NONBLOCK */
    return result;
}

static int kernel_write(void *it, uint64_t n)
{
    struct eventfd *self = it;
    int result;
    do
        result = eventfd_write(self->fd, n) == 0 ? 0 : -errno;
    while (result == -EAGAIN);
    return result;
}

static int at_once(struct eventfd *self, uint64_t *value, uint64_t n)
{
    pthread_mutex_lock(&self->nonblocking);
    CHECK(fcntl(self->fd, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
    int result = value ? eventfd_read(self->fd, value) : eventfd_write(self->fd, n);
    result = result == 0 ? 0 : -errno;
    CHECK(fcntl(self->fd, F_SETFL, O_RDWR) == 0);
    pthread_mutex_unlock(&self->nonblocking);
    return result;
}

static int kernel_try_read(void *it, uint64_t *value)
{
    return at_once(it, value, 0);
}

static int kernel_try_write(void *it, uint64_t n)
{
    return at_once(it, NULL, n);
}

/* The timed forms that the kernel lacks. The level of poll says nothing of whether a large write fits. */
static int kernel_timed(void *it, uint64_t *value, uint64_t n, int64_t timeout_ns)
{
    int64_t end = now_ns() + timeout_ns;
    for (;;) {
        int result = at_once(it, value, n);
        if (result != -EAGAIN)
            return result;
        if (timeout_ns >= 0 && now_ns() >= end)
            return -ETIMEDOUT;
        sleep_ns(100000);
    }
}

static int kernel_read_timeout(void *it, uint64_t *value, int64_t timeout_ns)
{
    return kernel_timed(it, value, 0, timeout_ns);
}

static int kernel_write_timeout(void *it, uint64_t n, int64_t timeout_ns)
{
    return kernel_timed(it, NULL, n, timeout_ns);
}

static int kernel_wait_readable(void *it, int64_t timeout_ns)
{
    struct eventfd *self = it;
    struct pollfd poll = {.fd = self->fd, .events = POLLIN};
    struct timespec limit = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    int ready;
    do
        ready = ppoll(&poll, 1, timeout_ns < 0 ? NULL : &limit, NULL);
    while (ready == -1 && errno == EINTR);
    return ready == 1 ? 0 : -ETIMEDOUT;
}

/* Makes the kernel call its eventfd_signal(): the completion of an asynchronous read, here of /dev/zero. A program
 * without a VM has no other way to take an eventfd beyond UINT64_MAX - 1. */
static void kernel_signal(void *it)
{
    struct eventfd *self = it;
    aio_context_t context = 0;
    struct io_event done;
    char byte = 1;
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    struct iocb block = {.aio_lio_opcode = IOCB_CMD_PREAD,
                         .aio_fildes = (uint32_t)zero,
                         .aio_buf = (uintptr_t)&byte,
                         .aio_nbytes = 1,
                         .aio_flags = IOCB_FLAG_RESFD,
                         .aio_resfd = (uint32_t)self->fd},
                *blocks[] = {&block};
    CHECK(zero >= 0 && syscall(SYS_io_setup, 1, &context) == 0);
    CHECK(syscall(SYS_io_submit, context, 1, blocks) == 1);
    CHECK(syscall(SYS_io_getevents, context, 1, 1, &done, NULL) == 1);
    CHECK(syscall(SYS_io_destroy, context) == 0 && close(zero) == 0);
}

static uint64_t kernel_count(void *it)
{
    struct eventfd *self = it;
    char path[64], line[128];
    unsigned long long count = 0;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", self->fd);
    FILE *file = fopen(path, "r");
    CHECK(file);
    int found = 0;
    while (fgets(line, sizeof line, file))
        found += sscanf(line, "eventfd-count: %llx", &count) == 1;
    fclose(file);
    CHECK(found == 1);
    return count;
}

static uint32_t kernel_readiness(void *it)
{
    struct eventfd *self = it;
    struct pollfd poll_for = {.fd = self->fd, .events = POLLIN | POLLOUT};
    CHECK(poll(&poll_for, 1, 0) >= 0);
    return (uint32_t)poll_for.revents;
}

static void *kernel_make(uint64_t initial, bool semaphore)
{
    struct eventfd *self = malloc(sizeof *self);
    CHECK(self);
    self->fd = eventfd(0, EFD_CLOEXEC | (semaphore ? EFD_SEMAPHORE : 0));
    CHECK(self->fd >= 0 && pthread_mutex_init(&self->nonblocking, NULL) == 0);
    CHECK(kernel_write(self, initial) == 0);
    return self;
}

static void kernel_drop(void *it)
{
    struct eventfd *self = it;
    CHECK(close(self->fd) == 0);
    pthread_mutex_destroy(&self->nonblocking);
    free(self);
}

/* Our functions take a pointer to the handle's type, and the table takes void *. */
#define KIND_OF(type, MAKE, DROP)                                                                  \
    static int type##_r(void *it, uint64_t *value) { return doorbell_##type##_read(it, value); }   \
    static int type##_tr(void *it, uint64_t *v) { return doorbell_##type##_try_read(it, v); }      \
    static int type##_rt(void *it, uint64_t *value, int64_t ns)                                    \
    {                                                                                              \
        return doorbell_##type##_read_timeout(it, value, ns);                                      \
    }                                                                                              \
    static int type##_w(void *it, uint64_t n) { return doorbell_##type##_write(it, n); }           \
    static int type##_tw(void *it, uint64_t n) { return doorbell_##type##_try_write(it, n); }      \
    static int type##_wt(void *it, uint64_t n, int64_t ns)                                         \
    {                                                                                              \
        return doorbell_##type##_write_timeout(it, n, ns);                                         \
    }                                                                                              \
    static void type##_s(void *it) { doorbell_##type##_signal(it); }                               \
    static int type##_wr(void *it, int64_t ns) { return doorbell_##type##_wait_readable(it, ns); } \
    static uint64_t type##_c(void *it) { return doorbell_##type##_count(it); }                     \
    static uint32_t type##_p(void *it) { return doorbell_##type##_readiness(it); }                 \
    static const struct kind type##_kind = {                                                       \
        #type,     false,     MAKE,      DROP,      type##_r,  type##_tr, type##_rt,               \
        type##_w,  type##_tw, type##_wt, type##_s,  type##_wr, type##_c,  type##_p};

static void *make_event(uint64_t initial, bool semaphore)
{
    return doorbell_event_new(initial, semaphore ? DOORBELL_SEMAPHORE : 0);
}

static void drop_event(void *it)
{
    doorbell_event_unref(it);
}

static void *make_shared(uint64_t initial, bool semaphore)
{
    int fd;
    uint32_t flags = semaphore ? DOORBELL_SEMAPHORE : 0;
    doorbell_shared_event *made = doorbell_shared_event_create(initial, flags, &fd);
    CHECK(made);
    close(fd);
    return made;
}

static void drop_shared(void *it)
{
    doorbell_shared_event_free(it);
}

KIND_OF(event, make_event, drop_event)
KIND_OF(shared_event, make_shared, drop_shared)

static const struct kind kernel_kind = {
    "eventfd",     true,             kernel_make,          kernel_drop,   kernel_read,
    kernel_try_read, kernel_read_timeout, kernel_write,    kernel_try_write, kernel_write_timeout,
    kernel_signal, kernel_wait_readable, kernel_count,     kernel_readiness};

static const uint64_t EDGES[] = {0, 1, 2, (uint64_t)1 << 63, UINT64_MAX - 3, UINT64_MAX - 2, FULL};
enum { NUMBER_OF_EDGES = sizeof EDGES / sizeof *EDGES };

static uint32_t readiness_at(uint64_t count)
{
    return (count > 0 ? DOORBELL_READABLE : 0) | (count < FULL ? DOORBELL_WRITABLE : 0) |
           (count == UINT64_MAX ? DOORBELL_ERROR : 0);
}

static void check_count(const struct kind *kind, void *it, uint64_t count)
{
    CHECK(kind->count(it) == count);
    CHECK(kind->readiness(it) == readiness_at(count));
    if (count > 0)
        CHECK(kind->wait_readable(it, -1) == 0);
    else
        FAILS(kind->wait_readable(it, 0), ETIMEDOUT);
}

static void e07_what_is_in_it_is_read_once(const struct kind *kind)
{
    for (int i = 0; i < NUMBER_OF_EDGES; i++) {
        uint64_t value = 77;
        void *it = kind->make(EDGES[i], false);
        check_count(kind, it, EDGES[i]);
        if (EDGES[i] > 0) {
            CHECK(kind->try_read(it, &value) == 0 && value == EDGES[i]);
        }
        FAILS(kind->try_read(it, &value), EAGAIN);
        check_count(kind, it, 0);
        kind->drop(it);
    }
}

static void e20_writes_add_up(const struct kind *kind)
{
    for (int semaphore = 0; semaphore < 2; semaphore++) {
        uint64_t value, sum = 0;
        void *it = kind->make(0, semaphore);
        for (int i = 0; i < 1000; i++)
            CHECK(kind->write(it, 1) == 0);
        while (kind->try_read(it, &value) == 0) {
            CHECK(value == (semaphore ? 1 : 1000));
            sum += value;
        }
        CHECK(sum == 1000);
        kind->drop(it);
    }
}

static void e22_semaphore_gives_single_units(const struct kind *kind)
{
    uint64_t value;
    void *it = kind->make(3, true);
    CHECK(kind->try_write(it, 2) == 0);
    for (uint64_t left = 5; left-- > 0;) {
        CHECK(kind->try_read(it, &value) == 0 && value == 1);
        check_count(kind, it, left);
    }
    FAILS(kind->try_read(it, &value), EAGAIN);
    kind->drop(it);
}

static void e25_full_is_one_less_than_max(const struct kind *kind)
{
    uint64_t value;
    void *it = kind->make(0, false);
    CHECK(kind->try_write(it, FULL) == 0);
    FAILS(kind->try_write(it, 1), EAGAIN);
    FAILS(kind->try_write(it, FULL), EAGAIN);
    FAILS(kind->write_timeout(it, 1, 0), ETIMEDOUT);
    CHECK(kind->try_write(it, 0) == 0);
    check_count(kind, it, FULL);
    CHECK(kind->try_read(it, &value) == 0 && value == FULL);
    kind->drop(it);
}

static void e26_max_is_never_written(const struct kind *kind)
{
    for (int i = 0; i < NUMBER_OF_EDGES; i++) {
        void *it = kind->make(EDGES[i], false);
        FAILS(kind->write(it, UINT64_MAX), EINVAL);
        FAILS(kind->try_write(it, UINT64_MAX), EINVAL);
        FAILS(kind->write_timeout(it, UINT64_MAX, 0), EINVAL);
        FAILS(kind->write_timeout(it, UINT64_MAX, -1), EINVAL);
        check_count(kind, it, EDGES[i]);
        kind->drop(it);
    }
}

static void e29_zero_is_written_but_not_readable(const struct kind *kind)
{
    uint64_t value;
    void *it = kind->make(0, false);
    CHECK(kind->write(it, 0) == 0);
    check_count(kind, it, 0);
    FAILS(kind->try_read(it, &value), EAGAIN);
    kind->drop(it);
}

static void e31_half_and_half_do_not_fit(const struct kind *kind)
{
    const uint64_t half = (uint64_t)1 << 63;
    void *it = kind->make(half, false);
    FAILS(kind->try_write(it, half), EAGAIN);
    FAILS(kind->try_write(it, half - 1), EAGAIN);
    check_count(kind, it, half);
    CHECK(kind->try_write(it, half - 2) == 0);
    check_count(kind, it, FULL);
    kind->drop(it);
}

static void edges_of_write_and_read(const struct kind *kind)
{
    for (int semaphore = 0; semaphore < 2; semaphore++)
        for (int i = 0; i < NUMBER_OF_EDGES; i++)
            for (int j = 0; j < NUMBER_OF_EDGES; j++) {
                uint64_t value, count = EDGES[i], n = EDGES[j];
                void *it = kind->make(count, semaphore);
                if (n <= FULL - count) {
                    CHECK(kind->try_write(it, n) == 0);
                    count += n;
                } else {
                    FAILS(kind->try_write(it, n), EAGAIN);
                }
                check_count(kind, it, count);
                if (count == 0) {
                    FAILS(kind->read_timeout(it, &value, 0), ETIMEDOUT);
                } else {
                    CHECK(kind->read_timeout(it, &value, -1) == 0);
                    CHECK(value == (semaphore ? 1 : count));
                    count -= value;
                }
                check_count(kind, it, count);
                kind->drop(it);
            }
}

/* Blocked calls. */

struct call {
    const struct kind *kind;
    void *it;
    uint64_t number;
    int result;
};

static void *call_read(void *argument)
{
    struct call *call = argument;
    call->result = call->kind->read(call->it, &call->number);
    return NULL;
}

static void *call_write(void *argument)
{
    struct call *call = argument;
    call->result = call->kind->write(call->it, call->number);
    return NULL;
}

static void e32_small_write_passes_a_blocked_large_one(const struct kind *kind)
{
    uint64_t value;
    void *it = kind->make(UINT64_MAX - 11, false);
    struct call large = {kind, it, 100, 0};
    struct caller caller;
    caller_start_asleep(&caller, call_write, &large);
    CHECK(kind->write(it, 5) == 0);
    caller_wait_asleep(&caller);
    check_count(kind, it, UINT64_MAX - 6);
    CHECK(kind->try_read(it, &value) == 0 && value == UINT64_MAX - 6);
    caller_join(&caller);
    CHECK(large.result == 0);
    check_count(kind, it, 100);
    kind->drop(it);
}

static void e37_blocked_reader_is_released_by_a_write(const struct kind *kind)
{
    void *it = kind->make(0, false);
    struct call reader = {kind, it, 0, 0};
    struct caller caller;
    caller_start_asleep(&caller, call_read, &reader);
    CHECK(kind->write(it, 3) == 0);
    caller_join(&caller);
    CHECK(reader.result == 0 && reader.number == 3);
    check_count(kind, it, 0);
    kind->drop(it);
}

static void e38_blocked_writer_is_released_by_a_read(const struct kind *kind)
{
    uint64_t value;
    void *it = kind->make(FULL, false);
    struct call writer = {kind, it, 7, 0};
    struct caller caller;
    caller_start_asleep(&caller, call_write, &writer);
    CHECK(kind->try_read(it, &value) == 0 && value == FULL);
    caller_join(&caller);
    CHECK(writer.result == 0);
    check_count(kind, it, 7);
    kind->drop(it);
}

static void e39_writer_waits_for_all_the_room_it_needs(const struct kind *kind)
{
    uint64_t value;
    void *it = kind->make(FULL, true);
    struct call writer = {kind, it, 3, 0};
    struct caller caller;
    caller_start(&caller, call_write, &writer);
    for (uint64_t taken = 1; taken <= 2; taken++) {
        caller_wait_asleep(&caller);
        CHECK(kind->try_read(it, &value) == 0 && value == 1);
        check_count(kind, it, FULL - taken);
    }
    caller_wait_asleep(&caller);
    CHECK(kind->try_read(it, &value) == 0);
    caller_join(&caller);
    CHECK(writer.result == 0);
    check_count(kind, it, FULL);
    kind->drop(it);
}

static void e41_one_reader_gets_it_or_each_a_unit(const struct kind *kind)
{
    enum { READERS = 4 };
    for (int semaphore = 0; semaphore < 2; semaphore++) {
        void *it = kind->make(0, semaphore);
        struct call readers[READERS];
        struct caller callers[READERS];
        for (int i = 0; i < READERS; i++) {
            readers[i] = (struct call){kind, it, 0, 0};
            caller_start_asleep(&callers[i], call_read, &readers[i]);
        }
        /* A semaphore gives each of them a unit of one write. A counter gives one of them all of it. */
        for (int i = 0; i < (semaphore ? 1 : READERS); i++) {
            CHECK(kind->write(it, READERS) == 0);
            while (kind->count(it) > 0)
                sleep_ns(100000);
        }
        for (int i = 0; i < READERS; i++) {
            caller_join(&callers[i]);
            CHECK(readers[i].result == 0 && readers[i].number == (semaphore ? 1 : READERS));
        }
        check_count(kind, it, 0);
        kind->drop(it);
    }
}

static void e40_a_read_releases_all_writes_that_fit(const struct kind *kind)
{
    enum { WRITERS = 4 };
    uint64_t value;
    void *it = kind->make(FULL, false);
    struct call writers[WRITERS];
    struct caller callers[WRITERS];
    for (int i = 0; i < WRITERS; i++) {
        writers[i] = (struct call){kind, it, i + 1, 0};
        caller_start_asleep(&callers[i], call_write, &writers[i]);
    }
    CHECK(kind->try_read(it, &value) == 0 && value == FULL);
    for (int i = 0; i < WRITERS; i++) {
        caller_join(&callers[i]);
        CHECK(writers[i].result == 0);
    }
    check_count(kind, it, 1 + 2 + 3 + 4);
    kind->drop(it);
}

static void e40_the_write_that_fits_is_released_first(const struct kind *kind)
{
    uint64_t value;
    void *it = kind->make(FULL, true);
    struct call large = {kind, it, 3, 0}, small = {kind, it, 1, 0};
    struct caller large_caller, small_caller;
    caller_start_asleep(&large_caller, call_write, &large);
    caller_start_asleep(&small_caller, call_write, &small);
    CHECK(kind->try_read(it, &value) == 0 && value == 1);
    caller_join(&small_caller);
    CHECK(small.result == 0);
    check_count(kind, it, FULL);
    for (int i = 0; i < 3; i++) {
        caller_wait_asleep(&large_caller);
        CHECK(kind->try_read(it, &value) == 0 && value == 1);
    }
    caller_join(&large_caller);
    CHECK(large.result == 0);
    check_count(kind, it, FULL);
    kind->drop(it);
}

static void *read_three(void *argument)
{
    struct call *call = argument;
    for (int i = 0; i < 3; i++)
        CHECK(call->kind->read(call->it, &call->number) == 0 && call->number == 1);
    return NULL;
}

static void e43_three_units_for_one_reader(const struct kind *kind)
{
    void *it = kind->make(0, true);
    struct call reader = {kind, it, 0, 0};
    struct caller caller;
    caller_start(&caller, read_three, &reader);
    for (int i = 0; i < 3; i++) {
        caller_wait_asleep(&caller);
        CHECK(kind->write(it, 1) == 0);
    }
    caller_join(&caller);
    check_count(kind, it, 0);
    kind->drop(it);
}

static void e44_zero_releases_no_reader(const struct kind *kind)
{
    void *it = kind->make(0, false);
    struct call reader = {kind, it, 0, 0};
    struct caller caller;
    caller_start(&caller, call_read, &reader);
    for (int i = 0; i < 3; i++) {
        caller_wait_asleep(&caller);
        CHECK(kind->write(it, 0) == 0);
    }
    caller_wait_asleep(&caller);
    CHECK(kind->write(it, 1) == 0);
    caller_join(&caller);
    CHECK(reader.result == 0 && reader.number == 1);
    kind->drop(it);
}

static void e45_nonblocking_calls_leave_a_blocked_one_alone(const struct kind *kind)
{
    uint64_t value;
    void *it = kind->make(FULL, false);
    struct call writer = {kind, it, 1, 0};
    struct caller caller;
    caller_start_asleep(&caller, call_write, &writer);
    FAILS(kind->try_write(it, 1), EAGAIN);
    FAILS(kind->write_timeout(it, 1, 0), ETIMEDOUT);
    caller_wait_asleep(&caller);
    CHECK(kind->try_read(it, &value) == 0 && value == FULL);
    caller_join(&caller);
    CHECK(writer.result == 0);
    check_count(kind, it, 1);
    kind->drop(it);
}

static void do_nothing(int number)
{
    (void)number;
}

/* The kernel's call ends with EINTR, and ours goes on. */
static void e47_signal_handlers_and_blocked_readers(const struct kind *kind)
{
    struct sigaction action = {.sa_handler = do_nothing};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    void *it = kind->make(0, false);
    struct call reader = {kind, it, 0, 0};
    struct caller caller;
    caller_start_asleep(&caller, call_read, &reader);
    CHECK(pthread_kill(caller.thread, SIGUSR1) == 0);
    if (!kind->kernel) {
        caller_wait_asleep(&caller);
        CHECK(kind->write(it, 3) == 0);
    }
    caller_join(&caller);
    if (kind->kernel)
        CHECK(reader.result == -EINTR);
    else
        CHECK(reader.result == 0 && reader.number == 3);
    check_count(kind, it, 0);
    kind->drop(it);
}

static void e47_signal_handlers_and_blocked_writers(const struct kind *kind)
{
    struct sigaction action = {.sa_handler = do_nothing};
    uint64_t value;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    void *it = kind->make(FULL, false);
    struct call writer = {kind, it, 3, 0};
    struct caller caller;
    caller_start_asleep(&caller, call_write, &writer);
    CHECK(pthread_kill(caller.thread, SIGUSR1) == 0);
    if (!kind->kernel) {
        caller_wait_asleep(&caller);
        check_count(kind, it, FULL);
        CHECK(kind->try_read(it, &value) == 0 && value == FULL);
    }
    caller_join(&caller);
    CHECK(writer.result == (kind->kernel ? -EINTR : 0));
    check_count(kind, it, kind->kernel ? FULL : 3);
    kind->drop(it);
}

/* The overflow state. */

static void e59_signal_reaches_the_overflow_state(const struct kind *kind)
{
    uint64_t value;
    void *it = kind->make(FULL, false);
    kind->signal(it);
    check_count(kind, it, UINT64_MAX);
    kind->signal(it);
    check_count(kind, it, UINT64_MAX);
    CHECK(kind->read(it, &value) == 0 && value == UINT64_MAX);
    check_count(kind, it, 0);
    kind->signal(it);
    check_count(kind, it, 1);
    kind->drop(it);
}

static void e61_overflow_state_blocks_every_write(const struct kind *kind)
{
    uint64_t value;
    for (uint64_t n = 0; n < 2; n++) {
        void *it = kind->make(FULL, false);
        kind->signal(it);
        FAILS(kind->try_write(it, n), EAGAIN);
        FAILS(kind->try_write(it, UINT64_MAX), EINVAL);
        struct call writer = {kind, it, n, 0};
        struct caller caller;
        caller_start_asleep(&caller, call_write, &writer);
        CHECK(kind->try_read(it, &value) == 0 && value == UINT64_MAX);
        caller_join(&caller);
        CHECK(writer.result == 0);
        check_count(kind, it, n);
        kind->drop(it);
    }
}

static void e62_semaphore_leaves_the_overflow_state(const struct kind *kind)
{
    uint64_t value;
    void *it = kind->make(FULL, true);
    kind->signal(it);
    struct call writer = {kind, it, 0, 0};
    struct caller caller;
    caller_start_asleep(&caller, call_write, &writer);
    CHECK(kind->try_read(it, &value) == 0 && value == 1);
    caller_join(&caller);
    CHECK(writer.result == 0);
    check_count(kind, it, FULL);
    kind->drop(it);
}

static void timeout_is_not_early(const struct kind *kind)
{
    const int64_t limit = 5000000;
    uint64_t value;
    void *empty = kind->make(0, false), *full = kind->make(FULL, false);
    int64_t start = now_ns();
    FAILS(kind->read_timeout(empty, &value, limit), ETIMEDOUT);
    CHECK(now_ns() - start >= limit);
    start = now_ns();
    FAILS(kind->write_timeout(full, 1, limit), ETIMEDOUT);
    CHECK(now_ns() - start >= limit);
    start = now_ns();
    FAILS(kind->wait_readable(empty, limit), ETIMEDOUT);
    CHECK(now_ns() - start >= limit);
    check_count(kind, empty, 0);
    check_count(kind, full, FULL);
    kind->drop(empty);
    kind->drop(full);
}

static void *wait_readable(void *argument)
{
    struct call *call = argument;
    call->result = call->kind->wait_readable(call->it, -1);
    return NULL;
}

static void one_signal_ends_every_wait(const struct kind *kind)
{
    enum { WAITERS = 3 };
    void *it = kind->make(0, false);
    struct call waits[WAITERS];
    struct caller callers[WAITERS];
    for (int i = 0; i < WAITERS; i++) {
        waits[i] = (struct call){kind, it, 0, 0};
        caller_start_asleep(&callers[i], wait_readable, &waits[i]);
    }
    CHECK(kind->write(it, 2) == 0);
    for (int i = 0; i < WAITERS; i++) {
        caller_join(&callers[i]);
        CHECK(waits[i].result == 0);
    }
    check_count(kind, it, 2);
    kind->drop(it);
}

static void a_write_of_zero_ends_no_wait(const struct kind *kind)
{
    void *it = kind->make(0, false);
    struct call wait = {kind, it, 0, 77};
    struct caller caller;
    caller_start(&caller, wait_readable, &wait);
    for (int i = 0; i < 3; i++) {
        caller_wait_asleep(&caller);
        CHECK(kind->write(it, 0) == 0);
    }
    caller_wait_asleep(&caller);
    CHECK(wait.result == 77 && kind->write(it, 1) == 0);
    caller_join(&caller);
    CHECK(wait.result == 0);
    check_count(kind, it, 1);
    kind->drop(it);
}

struct timed_call {
    struct call call;
    int64_t timeout_ns;
};

static void *call_read_timeout(void *argument)
{
    struct timed_call *timed = argument;
    struct call *call = &timed->call;
    call->result = call->kind->read_timeout(call->it, &call->number, timed->timeout_ns);
    return NULL;
}

static void *call_write_timeout(void *argument)
{
    struct timed_call *timed = argument;
    struct call *call = &timed->call;
    call->result = call->kind->write_timeout(call->it, call->number, timed->timeout_ns);
    return NULL;
}

static void *call_wait_readable(void *argument)
{
    struct timed_call *timed = argument;
    struct call *call = &timed->call;
    call->result = call->kind->wait_readable(call->it, timed->timeout_ns);
    return NULL;
}

static void negative_and_long_limits(const struct kind *kind)
{
    /* No clock reaches the last one. The oracle adds it to the time, so it gets the half. */
    const int64_t limits[] = {-1, INT64_MIN, kind->kernel ? INT64_MAX / 2 : INT64_MAX};
    for (int i = 0; i < 3; i++) {
        uint64_t value;
        void *empty = kind->make(0, false), *full = kind->make(FULL, false);
        struct timed_call wait = {{kind, empty, 0, 77}, limits[i]}, reader = wait;
        struct timed_call writer = {{kind, full, 7, 77}, limits[i]};
        struct caller waiting, reading, writing;
        caller_start_asleep(&waiting, call_wait_readable, &wait);
        CHECK(kind->write(empty, 2) == 0);
        caller_join(&waiting);
        CHECK(wait.call.result == 0);
        CHECK(kind->read(empty, &value) == 0 && value == 2);
        caller_start_asleep(&reading, call_read_timeout, &reader);
        CHECK(kind->write(empty, 3) == 0);
        caller_join(&reading);
        CHECK(reader.call.result == 0 && reader.call.number == 3);
        caller_start_asleep(&writing, call_write_timeout, &writer);
        CHECK(kind->read(full, &value) == 0 && value == FULL);
        caller_join(&writing);
        CHECK(writer.call.result == 0);
        check_count(kind, full, 7);
        kind->drop(empty);
        kind->drop(full);
    }
}

/* The sum of all reads is that of all writes. */
static void *write_many(void *argument)
{
    struct call *call = argument;
    for (uint64_t i = 0; i < call->number; i++)
        CHECK(call->kind->write(call->it, 1) == 0);
    return NULL;
}

static void e52_nothing_is_lost_between_threads(const struct kind *kind)
{
    enum { WRITERS = 3, WRITES = 2000 };
    for (int semaphore = 0; semaphore < 2; semaphore++) {
        uint64_t value, sum = 0;
        void *it = kind->make(0, semaphore);
        struct call writes[WRITERS];
        struct caller callers[WRITERS];
        for (int i = 0; i < WRITERS; i++) {
            writes[i] = (struct call){kind, it, WRITES, 0};
            caller_start(&callers[i], write_many, &writes[i]);
        }
        while (sum < WRITERS * WRITES) {
            CHECK(kind->read(it, &value) == 0);
            sum += value;
        }
        for (int i = 0; i < WRITERS; i++)
            caller_join(&callers[i]);
        CHECK(sum == WRITERS * WRITES);
        check_count(kind, it, 0);
        kind->drop(it);
    }
}

#define CASE(name) {#name, name}
static const struct {
    const char *name;
    void (*body)(const struct kind *);
} CASES[] = {
    CASE(e07_what_is_in_it_is_read_once),
    CASE(e20_writes_add_up),
    CASE(e22_semaphore_gives_single_units),
    CASE(e25_full_is_one_less_than_max),
    CASE(e26_max_is_never_written),
    CASE(e29_zero_is_written_but_not_readable),
    CASE(e31_half_and_half_do_not_fit),
    CASE(edges_of_write_and_read),
    CASE(e32_small_write_passes_a_blocked_large_one),
    CASE(e37_blocked_reader_is_released_by_a_write),
    CASE(e38_blocked_writer_is_released_by_a_read),
    CASE(e39_writer_waits_for_all_the_room_it_needs),
    CASE(e40_the_write_that_fits_is_released_first),
    CASE(e40_a_read_releases_all_writes_that_fit),
    CASE(e41_one_reader_gets_it_or_each_a_unit),
    CASE(e43_three_units_for_one_reader),
    CASE(e44_zero_releases_no_reader),
    CASE(e45_nonblocking_calls_leave_a_blocked_one_alone),
    CASE(e47_signal_handlers_and_blocked_readers),
    CASE(e47_signal_handlers_and_blocked_writers),
    CASE(e52_nothing_is_lost_between_threads),
    CASE(e59_signal_reaches_the_overflow_state),
    CASE(e61_overflow_state_blocks_every_write),
    CASE(e62_semaphore_leaves_the_overflow_state),
    CASE(timeout_is_not_early),
    CASE(negative_and_long_limits),
    CASE(one_signal_ends_every_wait),
    CASE(a_write_of_zero_ends_no_wait),
};

/* What only ours have: many signals in one, and handles. */
static void signals_and_handles(void)
{
    uint64_t value;
    doorbell_event *event = doorbell_event_new(UINT64_MAX - 3, 0);
    doorbell_event_signal_n(event, 2);
    check_count(&event_kind, event, UINT64_MAX - 1);
    doorbell_event_signal_n(event, 5);
    check_count(&event_kind, event, UINT64_MAX);
    FAILS(doorbell_event_try_write(event, 0), EAGAIN);
    CHECK(doorbell_event_read(event, &value) == 0 && value == UINT64_MAX);
    doorbell_event_signal_n(event, 9);
    CHECK(doorbell_event_ref(event) == event);
    doorbell_event_unref(event);
    CHECK(doorbell_event_try_read(event, NULL) == 0 && doorbell_event_count(event) == 0);
    doorbell_event_unref(event);
    doorbell_event_unref(NULL);

    event = doorbell_event_new(5, DOORBELL_SEMAPHORE | DOORBELL_SPIN_NEVER);
    CHECK(doorbell_event_try_read_all(event, &value) == 0 && value == 5);
    FAILS(doorbell_event_try_read_all(event, &value), EAGAIN);
    doorbell_event_unref(event);

    FAILS_NULL(doorbell_event_new(0, 8), EINVAL);
    FAILS_NULL(doorbell_event_new(0, DOORBELL_SPIN_NEVER | DOORBELL_SPIN_ALWAYS), EINVAL);
}

int main(void)
{
    const struct kind *kinds[] = {&kernel_kind, &event_kind, &shared_event_kind};
    int run = 0;
    begin_tests();
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
        for (size_t j = 0; j < 3; j++) {
            if (getenv("VERBOSE"))
                fprintf(stderr, "%s of %s\n", CASES[i].name, kinds[j]->name);
            CASES[i].body(kinds[j]);
            run++;
        }
    signals_and_handles();
    printf("conformance: %d passed, 0 failed\n", run + 1);
    return 0;
}
