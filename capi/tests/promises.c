/* What the first comment of doorbell.h promises: of handles, threads, signals, callbacks and fork. */
#include "test.h"
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

/* Pointers */

static void null_is_freed(void)
{
    doorbell_event_unref(NULL);
    doorbell_batch_free(NULL);
    doorbell_shared_event_free(NULL);
    doorbell_poller_unref(NULL);
    doorbell_events_free(NULL);
    doorbell_poller_fd_free(NULL);
    doorbell_table_unref(NULL);
    doorbell_reader_free(NULL);
    doorbell_value_queue_unref(NULL);
    doorbell_latest_unref(NULL);
    doorbell_router_unref(NULL);
    doorbell_level_source_free(NULL);
}

/* A sink that counts, and does in a message what a test asks for. */
struct sink {
    _Atomic int ups, downs, messages, destroyed;
    void (*in_message)(struct sink *);
    doorbell_router *router;
    doorbell_event *event;
    void *other;
    pthread_barrier_t together;
    _Atomic bool inside, leave;
};

static void set_level(void *user, uint32_t gsi, uint32_t pin, bool level)
{
    struct sink *sink = user;
    CHECK(gsi == 5 && pin == 11);
    *(level ? &sink->ups : &sink->downs) += 1;
}

static void signal_msi(void *user, uint32_t gsi, const doorbell_msi *message)
{
    struct sink *sink = user;
    CHECK(gsi == 24 || gsi == 25);
    CHECK(message->address == 0xfee00000);
    sink->messages++;
    if (sink->in_message && gsi == 24)
        sink->in_message(sink);
}

static void destroy(void *user)
{
    ((struct sink *)user)->destroyed++;
}

static const doorbell_route MSI = {.kind = DOORBELL_ROUTE_MSI, .msi = {.address = 0xfee00000}};
static const doorbell_route PIN = {.kind = DOORBELL_ROUTE_PIN, .pin = 11};

/* A router with messages on GSIs 24 and 25, a pin on GSI 5, and an irqfd on GSI 24. */
static void set_up(struct sink *sink)
{
    doorbell_sink functions = {
        .set_level = set_level, .signal_msi = signal_msi, .destroy = destroy, .user = sink};
    doorbell_gsi_route routes[] = {{5, PIN}, {24, MSI}, {25, MSI}};
    sink->router = doorbell_router_new(&functions, 0);
    sink->event = doorbell_event_new(0, 0);
    CHECK(sink->router && sink->event);
    CHECK(doorbell_router_change_routes(sink->router, routes, 3) == 0);
    CHECK(doorbell_router_assign(sink->router, sink->event, 24, NULL) == 0);
}

static void tear_down(struct sink *sink)
{
    doorbell_router_unref(sink->router);
    doorbell_event_unref(sink->event);
    CHECK(doorbell_reclaim() == 0);
    CHECK(sink->destroyed == 1);
}

static void handles_keep_what_they_need(void)
{
    /* A level source its router, a router the events of its irqfds, and a table what it signals. */
    struct sink sink = {0};
    uint32_t value = 7;
    doorbell_kick kick;
    doorbell_key key = {.address = 0xd0000050, .length = 4}, second = {.address = 0xd0000058, .length = 4};
    set_up(&sink);
    doorbell_event *line = doorbell_event_new(0, 0), *resample = doorbell_event_new(0, 0);
    doorbell_table *table = doorbell_table_new();
    doorbell_value_queue *values = doorbell_value_queue_new(sink.event, 4);
    doorbell_latest *latest = doorbell_latest_new(line, 0);
    CHECK(doorbell_table_assign_value_queue(table, &key, values) == 0);
    CHECK(doorbell_table_assign_latest(table, &second, latest) == 0);
    CHECK(doorbell_router_assign(sink.router, line, 5, resample) == 0);
    doorbell_level_source *source = doorbell_level_source_new(sink.router, 5);
    doorbell_event_unref(resample);
    doorbell_event_unref(line);
    doorbell_event_unref(sink.event);
    doorbell_latest_unref(latest);
    CHECK(doorbell_table_write(table, DOORBELL_MMIO, key.address, &value, 4) == 1);
    CHECK(sink.messages == 1);
    CHECK(doorbell_value_queue_pop(values, &kick) == 0 && kick.value == 7);
    doorbell_value_queue_unref(values);
    CHECK(doorbell_table_write(table, DOORBELL_MMIO, key.address, &value, 4) == 1);
    CHECK(sink.messages == 2);
    CHECK(doorbell_table_write(table, DOORBELL_MMIO, second.address, &value, 4) == 1);
    CHECK(sink.ups == 1);
    doorbell_router_ack(sink.router, 5);
    CHECK(sink.downs == 1);
    doorbell_router_unref(sink.router);
    CHECK(doorbell_reclaim() == 0 && sink.destroyed == 0);
    doorbell_level_source_set(source, true);
    CHECK(sink.ups == 2);
    doorbell_level_source_free(source);
    CHECK(doorbell_reclaim() == 0 && sink.destroyed == 1 && sink.downs == 2);
    doorbell_table_unref(table);

    /* A poller in an outer loop its poller. */
    doorbell_poller *poller = doorbell_poller_new(0);
    doorbell_event *event = doorbell_event_new(1, 0);
    doorbell_events *events = doorbell_events_new(1);
    CHECK(doorbell_poller_add(poller, event, 0, DOORBELL_READABLE) == 0);
    doorbell_poller_fd *outer = doorbell_poller_fd_new(poller);
    doorbell_poller_unref(poller);
    doorbell_event_unref(event);
    CHECK(doorbell_poller_fd_arm(outer, events) == 1);
    doorbell_poller_fd_free(outer);
    doorbell_events_free(events);
}

/* Threads and signals */

/* What a handler of a signal and the interrupted thread use at once, and other threads wait for. */
static struct {
    doorbell_event *event;
    doorbell_shared_event *shared;
    doorbell_poller *poller;
    _Atomic uint64_t written[2], taken[2];
    _Atomic int handled;
    _Atomic bool done;
} common;

#define USE(kind, object, number)                                                                  \
    do {                                                                                           \
        uint64_t value;                                                                            \
        doorbell_##kind##_signal(object);                                                          \
        doorbell_##kind##_signal_n(object, 2);                                                     \
        CHECK(doorbell_##kind##_try_write(object, 3) == 0);                                        \
        common.written[number] += 6;                                                               \
        if (doorbell_##kind##_try_read(object, &value) == 0)                                       \
            common.taken[number] += value;                                                         \
        (void)doorbell_##kind##_count(object);                                                     \
        CHECK(!(doorbell_##kind##_readiness(object) & DOORBELL_ERROR));                            \
        doorbell_##kind##_signal(object);                                                          \
        common.written[number] += 1;                                                               \
        if (doorbell_##kind##_try_read_all(object, &value) == 0)                                   \
            common.taken[number] += value;                                                         \
    } while (0)

static void use_all(void)
{
    USE(event, common.event, 0);
    USE(shared_event, common.shared, 1);
    doorbell_poller_notify(common.poller);
}

static void handler(int number)
{
    int before = errno;
    (void)number;
    use_all();
    common.handled++;
    errno = before;
}

static void *read_event(void *argument)
{
    uint64_t value;
    (void)argument;
    while (!common.done)
        if (doorbell_event_read_timeout(common.event, &value, 1000000) == 0)
            common.taken[0] += value;
    return NULL;
}

static void *read_shared(void *argument)
{
    uint64_t value;
    (void)argument;
    while (!common.done)
        if (doorbell_shared_event_read_timeout(common.shared, &value, 1000000) == 0)
            common.taken[1] += value;
    return NULL;
}

static void *interrupt(void *argument)
{
    const pthread_t *whom = argument;
    for (int i = 0; i < 2000; i++) {
        int before = common.handled;
        CHECK(pthread_kill(*whom, SIGUSR1) == 0);
        while (common.handled == before)
            sleep_ns(1000);
    }
    common.done = true;
    return NULL;
}

static void a_handler_of_a_signal(void)
{
    struct sigaction action = {.sa_handler = handler};
    pthread_t self = pthread_self();
    struct caller readers[2], interrupter;
    uint64_t value;
    int memfd;
    common.event = doorbell_event_new(0, 0);
    common.shared = doorbell_shared_event_create(0, 0, &memfd);
    common.poller = doorbell_poller_new(0);
    CHECK(common.event && common.shared && common.poller && close(memfd) == 0);
    doorbell_events *events = doorbell_events_new(1);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    caller_start(&readers[0], read_event, NULL);
    caller_start(&readers[1], read_shared, NULL);
    caller_start(&interrupter, interrupt, &self);
    while (!common.done) {
        use_all();
        CHECK(doorbell_poller_wait(common.poller, events, -1) == 0);
    }
    caller_join(&interrupter);
    caller_join(&readers[0]);
    caller_join(&readers[1]);
    if (doorbell_event_try_read(common.event, &value) == 0)
        common.taken[0] += value;
    if (doorbell_shared_event_try_read(common.shared, &value) == 0)
        common.taken[1] += value;
    CHECK(common.handled == 2000);
    CHECK(common.written[0] == common.taken[0] && common.written[1] == common.taken[1]);
    doorbell_events_free(events);
    doorbell_poller_unref(common.poller);
    doorbell_shared_event_free(common.shared);
    doorbell_event_unref(common.event);
}

static void do_nothing(int number)
{
    (void)number;
}

struct wait {
    doorbell_poller *poller;
    _Atomic int result;
};

static void *wait_at_poller(void *argument)
{
    struct wait *wait = argument;
    doorbell_events *events = doorbell_events_new(1);
    wait->result = doorbell_poller_wait(wait->poller, events, INT64_MAX);
    doorbell_events_free(events);
    return NULL;
}

static void a_signal_ends_no_wait(void)
{
    struct sigaction action = {.sa_handler = do_nothing};
    struct wait wait = {.poller = doorbell_poller_new(0), .result = 77};
    int pair[2];
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && pipe(pair) == 0);
    /* Once in a futex, and once in epoll_wait. */
    for (int fds = 0; fds < 2; fds++) {
        struct caller caller;
        wait.result = 77;
        if (fds)
            CHECK(doorbell_poller_add_fd(wait.poller, pair[0], 1, DOORBELL_READABLE) == 0);
        caller_start_asleep(&caller, wait_at_poller, &wait);
        CHECK(pthread_kill(caller.thread, SIGUSR1) == 0);
        caller_wait_asleep(&caller);
        CHECK(wait.result == 77);
        doorbell_poller_notify(wait.poller);
        caller_join(&caller);
        CHECK(wait.result == 0);
    }
    doorbell_poller_unref(wait.poller);
    CHECK(close(pair[0]) == 0 && close(pair[1]) == 0);
}

static void reports_come_in_order(void)
{
    doorbell_event *event[3];
    doorbell_poller *poller = doorbell_poller_new(0);
    doorbell_events *one = doorbell_events_new(1), *four = doorbell_events_new(4);
    for (size_t i = 0; i < 3; i++) {
        event[i] = doorbell_event_new(0, 0);
        CHECK(doorbell_poller_add(poller, event[i], i, DOORBELL_READABLE) == 0);
    }
    doorbell_event_signal(event[2]);
    doorbell_event_signal(event[0]);
    CHECK(doorbell_poller_wait(poller, one, -1) == 1);
    CHECK(doorbell_events_reports(one)->key == 2);
    /* What has been reported comes last, and what has become ready since comes before it. */
    doorbell_event_signal(event[1]);
    CHECK(doorbell_poller_wait(poller, four, -1) == 3);
    CHECK(doorbell_events_reports(four)[0].key == 0);
    for (size_t i = 0; i < 3; i++)
        doorbell_event_unref(event[i]);
    doorbell_poller_unref(poller);
    doorbell_events_free(one);
    doorbell_events_free(four);
}

/* Callbacks */

static void call_the_router(struct sink *sink)
{
    doorbell_router *router = sink->router;
    doorbell_route none = {0};
    CHECK(doorbell_router_assign(router, sink->other, 25, NULL) == 0);
    doorbell_event_signal(sink->other);
    doorbell_router_mask(router, 25);
    CHECK(doorbell_router_is_masked(router, 25) && !doorbell_router_is_pending(router, 25));
    doorbell_router_unmask(router, 25);
    CHECK(doorbell_router_set_route(router, 25, &none) == 0);
    CHECK(doorbell_router_set_route(router, 25, &MSI) == 0);
    doorbell_router_set_level(router, 5, true);
    CHECK(doorbell_router_level(router, 5) && sink->ups == 1);
    doorbell_router_set_level(router, 5, false);
    doorbell_router_ack(router, 5);
    /* Its own irqfd, too. */
    doorbell_router_deassign(router, sink->event, 24);
    FAILS(doorbell_reclaim(), EDEADLK);
    /* The sink is called for the signal when this callback has returned. */
    CHECK(sink->messages == 1);
}

static void a_callback_calls_the_router(void)
{
    struct sink sink = {.in_message = call_the_router, .other = doorbell_event_new(0, 0)};
    set_up(&sink);
    doorbell_event_signal(sink.event);
    CHECK(sink.messages == 2 && sink.ups == 1 && sink.downs == 1);
    doorbell_event_signal(sink.event);
    CHECK(sink.messages == 2 && doorbell_event_count(sink.event) == 1);
    doorbell_event_unref(sink.other);
    tear_down(&sink);
}

static bool never(void *user)
{
    (void)user;
    return false;
}

static void remove_others(struct sink *sink)
{
    struct sink *other = sink->other;
    doorbell_router_unref(other->router);
    doorbell_poller *poller = other->other;
    CHECK(doorbell_poller_delete(poller, 1) == 0);
}

static void what_a_callback_removes_is_destroyed_later(void)
{
    struct sink probed = {0};
    struct sink other = {.other = doorbell_poller_new(0)};
    struct sink sink = {.in_message = remove_others, .other = &other};
    doorbell_probe probe = {never, NULL, never, destroy, &probed};
    CHECK(doorbell_poller_add_probe(other.other, 1, &probe) == 0);
    set_up(&other);
    set_up(&sink);
    doorbell_event_signal(sink.event);
    CHECK(sink.messages == 1);
    CHECK(doorbell_reclaim() == 0);
    CHECK(other.destroyed == 1 && probed.destroyed == 1);
    doorbell_poller_unref(other.other);
    doorbell_event_unref(other.event);
    tear_down(&sink);
    CHECK(other.destroyed == 1 && probed.destroyed == 1);
}

static void meet(struct sink *sink)
{
    pthread_barrier_wait(&sink->together);
}

static void *signal_event(void *argument)
{
    doorbell_event_signal(argument);
    return NULL;
}

/* If one message waited for the other, neither would return. */
static void two_messages_of_one_gsi_at_once(void)
{
    struct sink sink = {.in_message = meet};
    struct caller caller;
    CHECK(pthread_barrier_init(&sink.together, NULL, 2) == 0);
    set_up(&sink);
    doorbell_event *second = doorbell_event_new(0, 0);
    CHECK(doorbell_router_assign(sink.router, second, 24, NULL) == 0);
    caller_start(&caller, signal_event, second);
    doorbell_event_signal(sink.event);
    caller_join(&caller);
    CHECK(sink.messages == 2);
    doorbell_event_unref(second);
    tear_down(&sink);
    pthread_barrier_destroy(&sink.together);
}

static void stay(struct sink *sink)
{
    sink->inside = true;
    while (!sink->leave)
        sleep_ns(100000);
    sink->inside = false;
}

/* A call that waits for callbacks, while another thread is in one. */
struct waiting {
    struct sink *sink;
    doorbell_table *table;
    doorbell_poller *poller;
    void (*call)(struct waiting *);
};

static const doorbell_key KEY = {.address = 0xd0000050, .length = 4};
static const doorbell_array ARRAY = {.address = 0xe0003000, .stride = 4, .slots = 1};

static void deassign(struct waiting *it)
{
    doorbell_router_deassign(it->sink->router, it->sink->event, 24);
}

static void set_route(struct waiting *it)
{
    doorbell_route none = {0};
    CHECK(doorbell_router_set_route(it->sink->router, 24, &none) == 0);
}

static void change_routes(struct waiting *it)
{
    doorbell_gsi_route none = {.gsi = 24};
    CHECK(doorbell_router_change_routes(it->sink->router, &none, 1) == 0);
}

static void synchronize(struct waiting *it)
{
    doorbell_router_synchronize(it->sink->router);
}

static void unref_router(struct waiting *it)
{
    doorbell_router_unref(it->sink->router);
    it->sink->router = NULL;
}

static void deassign_doorbell(struct waiting *it)
{
    CHECK(doorbell_table_deassign(it->table, &KEY, it->sink->event) == 0);
}

static void deassign_array(struct waiting *it)
{
    CHECK(doorbell_table_deassign_array(it->table, &ARRAY, &it->sink->event) == 0);
}

static void delete(struct waiting *it)
{
    CHECK(doorbell_poller_delete(it->poller, 1) == 0);
}

static void unref_poller(struct waiting *it)
{
    doorbell_poller_unref(it->poller);
    it->poller = NULL;
}

static void reclaim(struct waiting *it)
{
    (void)it;
    CHECK(doorbell_reclaim() == 0);
}

static void *wait_for_callbacks(void *argument)
{
    struct waiting *it = argument;
    it->call(it);
    CHECK(!it->sink->inside);
    return NULL;
}

static void *ring(void *argument)
{
    uint32_t value = 0;
    struct waiting *it = argument;
    uint64_t address = it->call == deassign_array ? ARRAY.address : KEY.address;
    CHECK(doorbell_table_write(it->table, DOORBELL_MMIO, address, &value, 4) == 1);
    return NULL;
}

static void calls_that_wait_for_callbacks(void)
{
    void (*const calls[])(struct waiting *) = {
        deassign, set_route,    change_routes, synchronize,       unref_router,
        delete,   unref_poller, reclaim,       deassign_doorbell, deassign_array};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        struct sink sink = {.in_message = stay};
        struct waiting it = {&sink, doorbell_table_new(), doorbell_poller_new(0), calls[i]};
        doorbell_event *polled = doorbell_event_new(0, 0);
        struct caller ringing, waiting;
        set_up(&sink);
        CHECK(doorbell_poller_add(it.poller, polled, 1, DOORBELL_READABLE) == 0);
        CHECK(doorbell_table_assign(it.table, &KEY, sink.event) == 0);
        CHECK(doorbell_table_assign_array(it.table, &ARRAY, &sink.event) == 0);
        caller_start(&ringing, ring, &it);
        while (!sink.inside)
            sleep_ns(100000);
        caller_start(&waiting, wait_for_callbacks, &it);
        /* A call that does not wait returns meanwhile, and finds the other thread inside. */
        sleep_ns(20000000);
        sink.leave = true;
        caller_join(&ringing);
        caller_join(&waiting);
        CHECK(sink.messages == 1);
        doorbell_poller_unref(it.poller);
        doorbell_event_unref(polled);
        doorbell_table_unref(it.table);
        tear_down(&sink);
    }
}

/* Fork */

static void a_child_uses_its_copies(void)
{
    uint32_t value = 0;
    size_t index;
    int memfd, status;
    doorbell_event *event = doorbell_event_new(3, 0);
    doorbell_shared_event *shared = doorbell_shared_event_create(0, 0, &memfd);
    doorbell_batch *batch = doorbell_batch_new(0);
    doorbell_table *table = doorbell_table_new();
    doorbell_poller *poller = doorbell_poller_new(0);
    doorbell_events *events = doorbell_events_new(1);
    CHECK(shared && close(memfd) == 0);
    CHECK(doorbell_batch_add(batch, event, &index) == 0 && doorbell_batch_signal(batch, index) == 0);
    CHECK(doorbell_table_assign(table, &KEY, event) == 0);
    CHECK(doorbell_poller_add(poller, event, 1, DOORBELL_READABLE) == 0);
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(doorbell_batch_commit(batch) == 0 && doorbell_event_count(event) == 4);
        CHECK(doorbell_table_write(table, DOORBELL_MMIO, KEY.address, &value, 4) == 1);
        CHECK(doorbell_table_deassign(table, &KEY, event) == 0);
        CHECK(doorbell_poller_wait(poller, events, -1) == 1);
        CHECK(doorbell_event_read(event, NULL) == 0);
        CHECK(doorbell_poller_wait(poller, events, 0) == 0);
        doorbell_shared_event_signal(shared);
    } else {
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        CHECK(doorbell_event_count(event) == 3 && doorbell_shared_event_count(shared) == 1);
    }
    doorbell_batch_free(batch);
    doorbell_events_free(events);
    doorbell_poller_unref(poller);
    doorbell_table_unref(table);
    doorbell_shared_event_free(shared);
    doorbell_event_unref(event);
    if (child == 0)
        _exit(0);
}

int main(void)
{
    begin_tests();
    a_child_uses_its_copies();
    null_is_freed();
    handles_keep_what_they_need();
    a_handler_of_a_signal();
    a_signal_ends_no_wait();
    reports_come_in_order();
    a_callback_calls_the_router();
    what_a_callback_removes_is_destroyed_later();
    two_messages_of_one_gsi_at_once();
    calls_that_wait_for_callbacks();
    /* A table has been used. */
    FAILS(doorbell_use_membarrier(), EBUSY);
    puts("promises: 11 passed, 0 failed");
    return 0;
}
