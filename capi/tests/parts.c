/* Batches, pollers, tables and routers. */
#include "test.h"
#include <poll.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

/* Batches */

static void batches(void)
{
    uint64_t value, unwritten = 77;
    size_t rx, tx, again;
    doorbell_event *events[] = {doorbell_event_new(0, 0), doorbell_event_new(FULL, 0)};
    doorbell_batch *batch = doorbell_batch_new(0);
    CHECK(batch && doorbell_batch_add(batch, events[0], &rx) == 0);
    CHECK(doorbell_batch_add(batch, events[1], &tx) == 0 && tx != rx);
    CHECK(doorbell_batch_add(batch, events[0], &again) == 0 && again == rx);
    CHECK(doorbell_batch_signal(batch, rx) == 0 && doorbell_batch_signal_n(batch, rx, 2) == 0);
    CHECK(doorbell_event_count(events[0]) == 0);
    CHECK(doorbell_batch_commit(batch) == 0);
    CHECK(doorbell_event_read(events[0], &value) == 0 && value == 3);

    /* A write that does not fit stays pending, and what fits is delivered. */
    CHECK(doorbell_batch_write(batch, tx, 5) == 0 && doorbell_batch_signal(batch, rx) == 0);
    FAILS(doorbell_batch_write(batch, tx, UINT64_MAX), EINVAL);
    FAILS(doorbell_batch_write(batch, tx, FULL - 4), EAGAIN);
    FAILS(doorbell_batch_commit(batch), EAGAIN);
    CHECK(doorbell_event_count(events[0]) == 1 && doorbell_event_count(events[1]) == FULL);
    CHECK(doorbell_event_read(events[1], &value) == 0 && value == FULL);
    CHECK(doorbell_batch_commit(batch) == 0);
    CHECK(doorbell_event_count(events[1]) == 5);

    /* Discarded, removed with a write that does not fit, and an index of no event. */
    CHECK(doorbell_batch_signal(batch, tx) == 0);
    doorbell_batch_discard(batch);
    CHECK(doorbell_batch_write(batch, tx, FULL) == 0);
    CHECK(doorbell_batch_remove(batch, tx, &unwritten) == 0 && unwritten == FULL);
    CHECK(doorbell_event_count(events[1]) == 5);
    FAILS(doorbell_batch_signal(batch, tx), EINVAL);
    FAILS(doorbell_batch_write(batch, 99, 1), EINVAL);
    FAILS(doorbell_batch_remove(batch, tx, NULL), EINVAL);

    /* The event has been added twice, and leaves at the second removal, with what is pending. */
    CHECK(doorbell_batch_remove(batch, rx, &unwritten) == 0 && unwritten == 0);
    CHECK(doorbell_batch_signal(batch, rx) == 0 && doorbell_batch_remove(batch, rx, NULL) == 0);
    CHECK(doorbell_event_count(events[0]) == 2);
    FAILS(doorbell_batch_signal(batch, rx), EINVAL);

    /* The end of a batch is a commit; and the batch keeps its events. */
    CHECK(doorbell_batch_add(batch, events[0], &rx) == 0 && doorbell_batch_signal(batch, rx) == 0);
    doorbell_batch_free(batch);
    CHECK(doorbell_event_count(events[0]) == 3);
    batch = doorbell_batch_new(0);
    CHECK(doorbell_batch_add(batch, events[0], &rx) == 0);
    doorbell_event_unref(events[0]);
    CHECK(doorbell_batch_signal(batch, rx) == 0 && doorbell_batch_commit(batch) == 0);
    doorbell_batch_free(batch);
    doorbell_batch_free(NULL);
    doorbell_event_unref(events[1]);
    FAILS_NULL(doorbell_batch_new(1), EINVAL);
}

/* Pollers */

static uint32_t ready_for(doorbell_poller *poller, doorbell_events *events, size_t key)
{
    int count = doorbell_poller_wait(poller, events, 0);
    CHECK(count >= 0);
    for (int i = 0; i < count; i++)
        if (doorbell_events_reports(events)[i].key == key)
            return doorbell_events_reports(events)[i].ready;
    return 0;
}

struct waiting {
    doorbell_poller *poller;
    int result;
    doorbell_report report;
};

static void *wait_at_poller(void *argument)
{
    struct waiting *waiting = argument;
    doorbell_events *events = doorbell_events_new(4);
    waiting->result = doorbell_poller_wait(waiting->poller, events, -1);
    if (waiting->result > 0)
        waiting->report = *doorbell_events_reports(events);
    doorbell_events_free(events);
    return NULL;
}

static void pollers(void)
{
    doorbell_event *event = doorbell_event_new(0, 0);
    doorbell_poller *poller = doorbell_poller_new(0);
    doorbell_events *events = doorbell_events_new(4);
    CHECK(doorbell_poller_add(poller, event, 7, DOORBELL_READABLE) == 0);
    FAILS(doorbell_poller_add(poller, event, 7, DOORBELL_READABLE), EEXIST);
    FAILS(doorbell_poller_add(poller, event, 8, 2), EINVAL);
    FAILS(doorbell_poller_modify(poller, 8, 0), ENOENT);
    FAILS(doorbell_poller_delete(poller, 8), ENOENT);
    FAILS_NULL(doorbell_events_new(0), EINVAL);
    FAILS_NULL(doorbell_events_new(SIZE_MAX), EINVAL);
    FAILS_NULL(doorbell_poller_new(DOORBELL_SEMAPHORE), EINVAL);

    /* Levels, edges, one shot, both sides, and errors. */
    CHECK(ready_for(poller, events, 7) == 0);
    doorbell_event_signal(event);
    CHECK(ready_for(poller, events, 7) == DOORBELL_READABLE);
    CHECK(ready_for(poller, events, 7) == DOORBELL_READABLE);
    CHECK(doorbell_poller_look(poller, events) == 1);
    CHECK(doorbell_poller_modify(poller, 7, DOORBELL_READABLE | DOORBELL_EDGE) == 0);
    CHECK(ready_for(poller, events, 7) == DOORBELL_READABLE);
    CHECK(ready_for(poller, events, 7) == 0);
    CHECK(doorbell_poller_modify(poller, 7, DOORBELL_WRITABLE | DOORBELL_ONE_SHOT) == 0);
    CHECK(ready_for(poller, events, 7) == DOORBELL_WRITABLE);
    CHECK(ready_for(poller, events, 7) == 0);
    CHECK(doorbell_poller_modify(poller, 7, DOORBELL_READABLE | DOORBELL_WRITABLE) == 0);
    CHECK(ready_for(poller, events, 7) == (DOORBELL_READABLE | DOORBELL_WRITABLE));
    CHECK(doorbell_poller_modify(poller, 7, 0) == 0);
    doorbell_event_signal_n(event, UINT64_MAX);
    CHECK(ready_for(poller, events, 7) == DOORBELL_ERROR);
    CHECK(doorbell_event_read(event, NULL) == 0);
    CHECK(doorbell_poller_modify(poller, 7, DOORBELL_READABLE) == 0);

    /* A thread that sleeps: woken by the event, by notify, by notify_all. */
    for (int way = 0; way < 3; way++) {
        struct waiting waiting = {.poller = poller, .result = 77};
        struct caller caller;
        caller_start_asleep(&caller, wait_at_poller, &waiting);
        if (way == 0)
            doorbell_event_signal(event);
        else if (way == 1)
            doorbell_poller_notify(poller);
        else
            doorbell_poller_notify_all(poller);
        caller_join(&caller);
        CHECK(waiting.result == (way == 0));
        if (way == 0) {
            CHECK(waiting.report.key == 7 && waiting.report.ready == DOORBELL_READABLE);
            CHECK(doorbell_event_read(event, NULL) == 0);
        }
    }

    /* Each buffer is told of the call for all, so this one is, too. */
    CHECK(doorbell_poller_wait(poller, events, -1) == 0);

    /* File descriptors: a socket that is hung up, and an eventfd that is carried over. */
    int pair[2], eventfd_ = eventfd(0, EFD_CLOEXEC);
    uint64_t value;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && eventfd_ >= 0);
    FAILS(doorbell_poller_add_fd(poller, -1, 9, DOORBELL_READABLE), EBADF);
    FAILS(doorbell_poller_add_fd(poller, 9999, 9, DOORBELL_READABLE), EBADF);
    CHECK(doorbell_poller_add_fd(poller, pair[0], 9, DOORBELL_READABLE) == 0);
    doorbell_event *bound = doorbell_event_new(0, 0);
    FAILS(doorbell_poller_add_bound(poller, pair[1], bound, 10, DOORBELL_READABLE), EINVAL);
    CHECK(doorbell_poller_add_bound(poller, eventfd_, bound, 10, DOORBELL_READABLE) == 0);
    CHECK(eventfd_write(eventfd_, 5) == 0);
    CHECK(doorbell_poller_wait(poller, events, -1) == 1);
    CHECK(doorbell_events_reports(events)->key == 10);
    CHECK(doorbell_event_read(bound, &value) == 0 && value == 5);
    CHECK(close(pair[1]) == 0);
    CHECK(ready_for(poller, events, 9) & DOORBELL_HANG_UP);
    CHECK(doorbell_poller_delete(poller, 9) == 0 && doorbell_poller_delete(poller, 10) == 0);
    CHECK(close(pair[0]) == 0 && close(eventfd_) == 0);
    doorbell_event_unref(bound);

    /* In an outer loop. */
    doorbell_poller_fd *outer = doorbell_poller_fd_new(poller);
    CHECK(outer && doorbell_poller_fd_arm(outer, events) == 0);
    struct pollfd watched = {.fd = doorbell_poller_fd_get(outer), .events = POLLIN};
    CHECK(poll(&watched, 1, 0) == 0);
    doorbell_event_signal(event);
    CHECK(poll(&watched, 1, -1) == 1);
    doorbell_poller_fd_disarm(outer);
    CHECK(ready_for(poller, events, 7) == DOORBELL_READABLE);
    CHECK(doorbell_poller_fd_arm(outer, events) == 1);
    doorbell_poller_notify(poller);
    CHECK(doorbell_event_read(event, NULL) == 0);
    FAILS(doorbell_poller_fd_arm(outer, events), EAGAIN);
    CHECK(doorbell_poller_fd_arm(outer, events) == 0);
    doorbell_poller_fd_free(outer);

    /* The poller keeps its events. */
    doorbell_event_unref(event);
    CHECK(ready_for(poller, events, 7) == 0);
    doorbell_poller_unref(doorbell_poller_ref(poller));
    doorbell_poller_unref(poller);
    doorbell_poller_unref(NULL);
    doorbell_events_free(events);
}

/* A ring whose driver notifies only while it is to. */
struct ring {
    _Atomic unsigned available;
    _Atomic bool no_notify;
    unsigned taken;
    int begun, destroyed;
};

static bool ring_ready(void *user)
{
    struct ring *ring = user;
    return atomic_load_explicit(&ring->available, memory_order_acquire) != ring->taken;
}

static void ring_begin(void *user)
{
    struct ring *ring = user;
    ring->begun++;
    atomic_store_explicit(&ring->no_notify, true, memory_order_relaxed);
}

static bool ring_end(void *user)
{
    struct ring *ring = user;
    atomic_store_explicit(&ring->no_notify, false, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    return ring_ready(ring);
}

static void ring_destroy(void *user)
{
    ((struct ring *)user)->destroyed++;
}

enum { REQUESTS = 5000 };

struct driver {
    struct ring *ring;
    doorbell_event *kick;
};

static void *drive(void *argument)
{
    struct driver *driver = argument;
    for (unsigned i = 0; i < REQUESTS; i++) {
        atomic_fetch_add_explicit(&driver->ring->available, 1, memory_order_release);
        atomic_thread_fence(memory_order_seq_cst);
        if (!atomic_load_explicit(&driver->ring->no_notify, memory_order_relaxed))
            doorbell_event_signal(driver->kick);
        if (i % 64 == 0)
            sleep_ns(100000);
    }
    return NULL;
}

static void probes(void)
{
    struct ring ring = {0};
    doorbell_event *kick = doorbell_event_new(0, 0);
    doorbell_poller *poller = doorbell_poller_new(0);
    doorbell_events *events = doorbell_events_new(4);
    doorbell_probe probe = {ring_ready, ring_begin, ring_end, ring_destroy, &ring}, incomplete = probe;
    incomplete.end = NULL;
    FAILS(doorbell_poller_attach_probe(poller, 3, &probe), ENOENT);
    CHECK(ring.destroyed == 1);
    CHECK(doorbell_poller_add(poller, kick, 3, DOORBELL_READABLE | DOORBELL_EDGE) == 0);
    FAILS(doorbell_poller_attach_probe(poller, 3, &incomplete), EINVAL);
    CHECK(ring.destroyed == 2);
    FAILS(doorbell_poller_add_probe(poller, 3, &probe), EEXIST);
    CHECK(ring.destroyed == 3);
    CHECK(doorbell_poller_attach_probe(poller, 3, &probe) == 0);

    struct driver driver = {&ring, kick};
    struct caller caller;
    caller_start(&caller, drive, &driver);
    while (ring.taken < REQUESTS) {
        CHECK(doorbell_poller_wait(poller, events, -1) >= 0);
        ring.taken = atomic_load_explicit(&ring.available, memory_order_acquire);
    }
    caller_join(&caller);
    CHECK(ring.begun > 0 && ring.destroyed == 3);
    CHECK(doorbell_poller_delete(poller, 3) == 0);
    CHECK(ring.destroyed == 4);

    /* A source that has nothing but a probe, and goes with the poller. */
    CHECK(doorbell_poller_add_probe(poller, 4, &probe) == 0);
    atomic_fetch_add(&ring.available, 1);
    CHECK(ready_for(poller, events, 4) == DOORBELL_READABLE);
    doorbell_poller_unref(poller);
    CHECK(ring.destroyed == 5);
    doorbell_events_free(events);
    doorbell_event_unref(kick);
}

/* Tables */

static void tables(void)
{
    uint16_t two = 1;
    uint32_t four = 7;
    doorbell_event *a = doorbell_event_new(0, 0), *b = doorbell_event_new(0, 0);
    doorbell_table *table = doorbell_table_new();
    doorbell_key key = {.address = 0xd0000050, .length = 4, .flags = DOORBELL_MMIO};
    doorbell_key port = {.address = 0xc050, .length = 2, .datamatch = 1,
                         .flags = DOORBELL_PIO | DOORBELL_DATAMATCH};
    CHECK(doorbell_table_assign(table, &key, a) == 0);
    FAILS(doorbell_table_assign(table, &key, b), EEXIST);
    FAILS(doorbell_table_deassign(table, &key, b), ENOENT);
    CHECK(doorbell_table_assign(table, &port, b) == 0);
    doorbell_key wrong = key;
    wrong.length = 3;
    FAILS(doorbell_table_assign(table, &wrong, a), EINVAL);
    wrong = key;
    wrong.flags = 4;
    FAILS(doorbell_table_assign(table, &wrong, a), EINVAL);

    doorbell_reader *reader = doorbell_table_reader(table);
    CHECK(doorbell_table_write(table, DOORBELL_MMIO, 0xd0000050, &four, 4) == 1);
    CHECK(doorbell_reader_write(reader, DOORBELL_MMIO, 0xd0000050, &four, 4) == 1);
    CHECK(doorbell_reader_write(reader, DOORBELL_MMIO, 0xd0000050, &four, 2) == 0);
    CHECK(doorbell_reader_write(reader, DOORBELL_PIO, 0xd0000050, &four, 4) == 0);
    CHECK(doorbell_reader_write(reader, DOORBELL_PIO, 0xc050, &two, 2) == 1);
    two = 2;
    CHECK(doorbell_reader_write(reader, DOORBELL_PIO, 0xc050, &two, 2) == 0);
    CHECK(doorbell_table_write(table, DOORBELL_MMIO, 0xd0000050, NULL, 0) == 0);
    FAILS(doorbell_table_write(table, 2, 0xd0000050, &four, 4), EINVAL);
    CHECK(doorbell_event_count(a) == 2 && doorbell_event_count(b) == 1);
    CHECK(doorbell_table_deassign(table, &key, a) == 0);
    CHECK(doorbell_reader_write(reader, DOORBELL_MMIO, 0xd0000050, &four, 4) == 0);

    /* An array by address and one by value. */
    doorbell_event *queues[4];
    for (int i = 0; i < 4; i++)
        queues[i] = doorbell_event_new(0, 0);
    doorbell_array array = {.address = 0xe0003000, .stride = 4, .slots = 4};
    CHECK(doorbell_table_assign_array(table, &array, queues) == 0);
    CHECK(doorbell_reader_write(reader, DOORBELL_MMIO, 0xe000300c, &two, 2) == 1);
    CHECK(doorbell_event_count(queues[3]) == 1);
    CHECK(doorbell_table_deassign_array(table, &array, queues) == 0);
    FAILS(doorbell_table_deassign_array(table, &array, queues), ENOENT);
    array.stride = 0;
    FAILS(doorbell_table_assign_array(table, &array, queues), EINVAL);
    array.length = 2;
    CHECK(doorbell_table_assign_array(table, &array, queues) == 0);
    CHECK(doorbell_reader_write(reader, DOORBELL_MMIO, 0xe0003000, &two, 2) == 1);
    CHECK(doorbell_event_count(queues[2]) == 1);
    array.slots = 0;
    FAILS(doorbell_table_assign_array(table, &array, NULL), EINVAL);

    /* What keeps values. */
    doorbell_kick kick;
    doorbell_value_queue *values = doorbell_value_queue_new(a, 2);
    doorbell_latest *latest = doorbell_latest_new(b, 3);
    doorbell_key second = key;
    second.address += 8;
    FAILS_NULL(doorbell_value_queue_new(a, 0), EINVAL);
    FAILS_NULL(doorbell_value_queue_new(a, SIZE_MAX), EINVAL);
    CHECK(doorbell_table_assign_value_queue(table, &key, values) == 0);
    CHECK(doorbell_table_assign_latest(table, &second, latest) == 0);
    CHECK(doorbell_latest_value(latest) == 3);
    for (four = 10; four < 12; four++) {
        CHECK(doorbell_reader_write(reader, DOORBELL_MMIO, key.address, &four, 4) == 1);
        CHECK(doorbell_reader_write(reader, DOORBELL_MMIO, second.address, &four, 4) == 1);
    }
    CHECK(doorbell_reader_write(reader, DOORBELL_MMIO, key.address, &four, 4) == 0); /* full */
    CHECK(doorbell_latest_value(latest) == 11);
    CHECK(doorbell_value_queue_pop(values, &kick) == 0 && kick.value == 10 && kick.slot == 0);
    CHECK(doorbell_value_queue_pop(values, &kick) == 0 && kick.value == 11);
    FAILS(doorbell_value_queue_pop(values, &kick), EAGAIN);
    CHECK(doorbell_table_deassign_value_queue(table, &key, values) == 0);
    FAILS(doorbell_table_deassign_value_queue(table, &key, values), ENOENT);
    CHECK(doorbell_table_deassign_latest(table, &second, latest) == 0);
    FAILS(doorbell_table_deassign_latest(table, &second, latest), ENOENT);
    doorbell_value_queue_unref(doorbell_value_queue_ref(values));
    doorbell_latest_unref(doorbell_latest_ref(latest));
    doorbell_value_queue_unref(values);
    doorbell_latest_unref(latest);

    /* The reader keeps the table, and the table its events. */
    doorbell_table_unref(doorbell_table_ref(table));
    doorbell_table_unref(table);
    for (int i = 0; i < 4; i++)
        doorbell_event_unref(queues[i]);
    doorbell_event_unref(a);
    doorbell_event_unref(b);
    two = 1;
    CHECK(doorbell_reader_write(reader, DOORBELL_PIO, 0xc050, &two, 2) == 1);
    doorbell_reader_free(reader);
    doorbell_reader_free(NULL);
}

/* Routers */

struct log {
    int ups, downs, pulses, messages, connects, disconnects, changes, destroyed;
    int refuse; /* what connect and change_routes return */
    doorbell_msi message;
    doorbell_route_change change;
    pthread_t thread; /* of the last message */
};

static void log_level(void *user, uint32_t gsi, uint32_t pin, bool level)
{
    struct log *log = user;
    CHECK(gsi == 5 && pin == 11);
    *(level ? &log->ups : &log->downs) += 1;
}

static void log_message(void *user, uint32_t gsi, const doorbell_msi *message)
{
    struct log *log = user;
    CHECK(gsi == 24);
    log->message = *message;
    log->thread = pthread_self();
    log->messages++;
}

static void log_pulse(void *user, uint32_t gsi, uint32_t pin)
{
    struct log *log = user;
    CHECK(gsi == 5 && pin == 11);
    FAILS(doorbell_reclaim(), EDEADLK); /* in a signal */
    log->pulses++;
}

static int log_changes(void *user, const doorbell_route_change *changes, size_t count)
{
    struct log *log = user;
    CHECK(count >= 1);
    log->change = changes[count - 1];
    log->changes++;
    return log->refuse;
}

static int log_connect(void *user, uint32_t gsi, bool resample)
{
    struct log *log = user;
    CHECK((gsi == 5 && resample) || gsi == 24 || gsi == 5);
    log->connects++;
    return log->refuse;
}

static void log_disconnect(void *user, uint32_t gsi, bool resample)
{
    struct log *log = user;
    (void)gsi, (void)resample;
    log->disconnects++;
}

static void log_destroy(void *user)
{
    ((struct log *)user)->destroyed++;
}

static void routers(void)
{
    struct log log = {0};
    doorbell_sink sink = {log_level,   log_message,    log_pulse,   log_changes,
                          log_connect, log_disconnect, log_destroy, &log};
    doorbell_sink incomplete = sink;
    incomplete.signal_msi = NULL;
    FAILS_NULL(doorbell_router_new(&incomplete, 0), EINVAL);
    FAILS_NULL(doorbell_router_new(&sink, 2), EINVAL);
    CHECK(log.destroyed == 2);
    doorbell_router *router = doorbell_router_new(&sink, 0);
    doorbell_event *vector = doorbell_event_new(0, 0), *intx = doorbell_event_new(0, 0);
    doorbell_event *resample = doorbell_event_new(0, 0);

    /* An MSI, with and without a route. */
    doorbell_route msi = {.kind = DOORBELL_ROUTE_MSI, .msi = {.address = 0xfee00000, .data = 0x31}};
    doorbell_route pin = {.kind = DOORBELL_ROUTE_PIN, .pin = 11}, none = {0}, wrong = {.kind = 9};
    CHECK(doorbell_router_assign(router, vector, 24, NULL) == 0 && log.connects == 1);
    FAILS(doorbell_router_assign(router, vector, 24, NULL), EBUSY);
    FAILS(doorbell_router_assign(router, intx, 5, intx), EINVAL);
    doorbell_event_signal(vector);
    CHECK(log.messages == 0 && doorbell_event_count(vector) == 0);
    FAILS(doorbell_router_set_route(router, 24, &wrong), EINVAL);
    FAILS(doorbell_router_set_route(router, 4096, &msi), EINVAL);
    CHECK(doorbell_router_set_route(router, 24, &msi) == 0 && log.changes == 1);
    CHECK(log.change.gsi == 24 && log.change.before.kind == DOORBELL_ROUTE_NONE);
    CHECK(log.change.after.kind == DOORBELL_ROUTE_MSI && log.change.after.msi.data == 0x31);
    doorbell_event_signal(vector);
    CHECK(log.messages == 1 && log.message.address == 0xfee00000 && log.message.data == 0x31);
    CHECK(log.message.flags == 0 && pthread_equal(log.thread, pthread_self()));

    /* Masked, and unmasked with another route. */
    doorbell_router_mask(router, 24);
    doorbell_event_signal(vector);
    CHECK(log.messages == 1 && doorbell_router_is_masked(router, 24));
    CHECK(doorbell_router_is_pending(router, 24));
    msi.msi.devid = UINT32_MAX;
    msi.msi.flags = DOORBELL_MSI_DEVID;
    FAILS(doorbell_router_unmask_with_route(router, 24, &msi), EINVAL);
    FAILS(doorbell_router_unmask_with_route(router, 24, &none), EINVAL);
    msi.msi.devid = 8;
    CHECK(doorbell_router_unmask_with_route(router, 24, &msi) == 0);
    CHECK(log.messages == 2 && log.message.devid == 8 && log.message.flags == DOORBELL_MSI_DEVID);
    CHECK(!doorbell_router_is_pending(router, 24) && !doorbell_router_is_masked(router, 24));
    doorbell_router_mask(router, 24);
    doorbell_router_unmask(router, 24);
    CHECK(log.messages == 2);

    /* A sink that refuses. */
    log.refuse = ENOSPC;
    FAILS(doorbell_router_set_route(router, 24, &none), ENOSPC);
    FAILS(doorbell_router_assign(router, intx, 5, NULL), ENOSPC);
    log.refuse = 0;
    doorbell_event_signal(vector);
    CHECK(log.messages == 3);

    /* A pin: an edge, a level with resample, and the holds of the VMM and of a device. */
    doorbell_gsi_route routes[] = {{5, pin}, {6, pin}};
    FAILS(doorbell_router_change_routes(router, routes, 2), EINVAL);
    CHECK(doorbell_router_change_routes(router, routes, 1) == 0);
    CHECK(doorbell_router_change_routes(router, NULL, 0) == 0);
    CHECK(doorbell_router_assign(router, intx, 5, NULL) == 0);
    doorbell_event_signal(intx);
    CHECK(log.pulses == 1);
    doorbell_router_deassign(router, intx, 5);
    doorbell_event_signal(intx);
    CHECK(log.pulses == 1 && doorbell_event_read(intx, NULL) == 0);
    CHECK(doorbell_router_assign(router, intx, 5, resample) == 0);
    doorbell_event_signal(intx);
    CHECK(log.ups == 1 && log.downs == 0 && doorbell_router_level(router, 5));
    doorbell_router_ack(router, 5);
    CHECK(log.downs == 1 && doorbell_event_count(resample) == 1);
    doorbell_router_set_level(router, 5, true);
    doorbell_level_source *source = doorbell_level_source_new(router, 5);
    doorbell_level_source_set(source, true);
    doorbell_router_set_level(router, 5, false);
    CHECK(doorbell_router_level(router, 5));
    doorbell_level_source_free(source);
    CHECK(!doorbell_router_level(router, 5) && log.ups == log.downs);

    /* A batch interrupts at its commit. */
    size_t index;
    doorbell_batch *batch = doorbell_batch_new(0);
    CHECK(doorbell_batch_add(batch, vector, &index) == 0);
    CHECK(doorbell_batch_signal(batch, index) == 0 && log.messages == 3);
    CHECK(doorbell_batch_commit(batch) == 0 && log.messages == 4);
    doorbell_batch_free(batch);

    doorbell_router_synchronize(router);
    doorbell_router_unref(doorbell_router_ref(router));
    CHECK(log.destroyed == 2);
    doorbell_router_unref(router);
    doorbell_router_unref(NULL);
    CHECK(doorbell_reclaim() == 0);
    CHECK(log.destroyed == 3 && log.connects == log.disconnects + 1); /* one was refused */
    doorbell_event_signal(vector);
    CHECK(log.messages == 4 && doorbell_event_count(vector) == 1);

    /* With a worker, on its thread. */
    sink.pulse = NULL;
    sink.connect = NULL;
    sink.change_routes = NULL;
    sink.disconnect = NULL;
    router = doorbell_router_new(&sink, DOORBELL_WORKER);
    CHECK(router && doorbell_router_set_route(router, 24, &msi) == 0);
    CHECK(doorbell_router_set_route(router, 5, &pin) == 0);
    CHECK(doorbell_router_assign(router, vector, 24, NULL) == 0); /* it has a count */
    CHECK(doorbell_router_assign(router, intx, 5, NULL) == 0);
    doorbell_event_signal(intx);
    doorbell_router_synchronize(router);
    CHECK(log.messages == 5 && !pthread_equal(log.thread, pthread_self()));
    CHECK(log.ups == 3 && log.downs == 3); /* a pulse by two levels */
    doorbell_router_unref(router);
    CHECK(doorbell_reclaim() == 0);
    CHECK(log.destroyed == 4);
    doorbell_event_unref(vector);
    doorbell_event_unref(intx);
    doorbell_event_unref(resample);
}

int main(void)
{
    begin_tests();
    doorbell_prepare_for_seccomp();
    int result = doorbell_use_membarrier();
    if (result < 0)
        fprintf(stderr, "no membarrier: %s\n", strerror(-result));
    batches();
    pollers();
    probes();
    tables();
    routers();
    puts("parts: 5 passed, 0 failed");
    return 0;
}
