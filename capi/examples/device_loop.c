/*
 * The thread of a virtio device with four queues, as in QEMU (an iothread) or kvmtool (virtio_pci__ioevent_callback):
 *
 *     vCPU: a write to a notify address ──▶ table ──▶ kick[i] ──▶ poller ──▶ device: serve queue i
 *     guest ◀── inject() ◀── router ◀── irq ◀──────────────────────────────── device
 *
 * cc device_loop.c $(pkg-config --cflags --libs doorbell) -lpthread
 */
#include <doorbell.h>
#include <err.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { QUEUES = 4, STOP = QUEUES, REQUESTS = 10000, GSI = 24 };

/* BAR 0, where the driver writes a queue's number to kick it: notify_off_multiplier is 4. */
static const doorbell_array NOTIFY = {.address = 0xe0003000, .stride = 4, .slots = QUEUES};

struct device {
    doorbell_event *kick[QUEUES], *irq, *stop;
    doorbell_table *table;   /* what KVM_IOEVENTFD would hold */
    doorbell_router *router; /* what KVM_IRQFD would hold */
    doorbell_poller *poller;
    _Atomic unsigned available[QUEUES], used[QUEUES]; /* the rings */
    _Atomic unsigned interrupts;
};

static void must(int result, const char *what)
{
    if (result < 0)
        errx(EXIT_FAILURE, "%s: %s", what, strerror(-result));
}

/* The interrupt controller: here the VMM would call KVM_SIGNAL_MSI, or deliver the vector to a local APIC. */
static void inject(void *user, uint32_t gsi, const doorbell_msi *message)
{
    struct device *device = user;
    (void)gsi, (void)message;
    atomic_fetch_add(&device->interrupts, 1);
}

static void set_level(void *user, uint32_t gsi, uint32_t pin, bool level)
{
    (void)user, (void)gsi, (void)pin, (void)level; /* MSI-X only */
}

static void serve_queue(struct device *device, unsigned queue)
{
    unsigned available = atomic_load(&device->available[queue]);
    if (atomic_exchange(&device->used[queue], available) != available)
        doorbell_event_signal(device->irq); /* calls inject() before it returns */
}

static void *device_thread(void *argument)
{
    struct device *device = argument;
    doorbell_events *events = doorbell_events_new(QUEUES + 1);
    for (;;) {
        int ready = doorbell_poller_wait(device->poller, events, -1);
        must(ready, "wait");
        const doorbell_report *reports = doorbell_events_reports(events);
        for (int i = 0; i < ready; i++) {
            if (reports[i].key == STOP) {
                doorbell_events_free(events);
                return NULL;
            }
            doorbell_event_try_read(device->kick[reports[i].key], NULL); /* event_notifier_test_and_clear() */
            serve_queue(device, (unsigned)reports[i].key);
        }
    }
}

/* A vCPU: what a driver does, and what comes of it, KVM_EXIT_MMIO. */
static void *vcpu_thread(void *argument)
{
    struct device *device = argument;
    doorbell_reader *doorbells = doorbell_table_reader(device->table);
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint16_t queue = i % QUEUES;
        atomic_fetch_add(&device->available[queue], 1);
        if (doorbell_reader_write(doorbells, DOORBELL_MMIO, NOTIFY.address + 4 * queue, &queue, 2) != 1)
            errx(EXIT_FAILURE, "not a doorbell");
    }
    doorbell_reader_free(doorbells);
    return NULL;
}

int main(void)
{
    struct device device = {.irq = doorbell_event_new(0, 0), .stop = doorbell_event_new(0, 0),
                            .table = doorbell_table_new(), .poller = doorbell_poller_new(0)};
    doorbell_sink sink = {.set_level = set_level, .signal_msi = inject, .user = &device};
    doorbell_route vector = {.kind = DOORBELL_ROUTE_MSI, .msi = {.address = 0xfee00000, .data = 0x31}};
    pthread_t device_id, vcpu_id;
    unsigned done = 0;

    device.router = doorbell_router_new(&sink, 0);
    must(doorbell_router_set_route(device.router, GSI, &vector), "route");
    must(doorbell_router_assign(device.router, device.irq, GSI, NULL), "irqfd");
    for (size_t i = 0; i < QUEUES; i++) {
        device.kick[i] = doorbell_event_new(0, 0);
        must(doorbell_poller_add(device.poller, device.kick[i], i, DOORBELL_READABLE), "poller");
    }
    must(doorbell_table_assign_array(device.table, &NOTIFY, device.kick), "ioeventfd");
    must(doorbell_poller_add(device.poller, device.stop, STOP, DOORBELL_READABLE), "poller");

    if (pthread_create(&device_id, NULL, device_thread, &device) ||
        pthread_create(&vcpu_id, NULL, vcpu_thread, &device))
        errx(EXIT_FAILURE, "no thread");
    pthread_join(vcpu_id, NULL);
    while (done < REQUESTS) /* the guest waits for its requests */
        for (size_t i = done = 0; i < QUEUES; i++)
            done += atomic_load(&device.used[i]);
    doorbell_event_signal(device.stop); /* is never read, so it would stop any number of threads */
    pthread_join(device_id, NULL);
    printf("%u requests, %u interrupts\n", done, atomic_load(&device.interrupts));

    doorbell_router_unref(device.router);
    doorbell_table_unref(device.table);
    doorbell_poller_unref(device.poller);
    for (size_t i = 0; i < QUEUES; i++)
        doorbell_event_unref(device.kick[i]);
    doorbell_event_unref(device.irq);
    doorbell_event_unref(device.stop);
    return device.interrupts == 0; /* at least one */
}
