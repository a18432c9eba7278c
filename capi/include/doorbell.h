/*
 * libdoorbell: eventfd, ioeventfd and irqfd in userspace. Generated from capi/src by cbindgen; do not edit.
 *
 * ERRORS
 *
 *   A function that returns an int returns the negative of an errno if it fails, such as -EAGAIN. The variable errno
 *   then says nothing: it may have changed or not. The call has changed nothing else, unless its comment says
 *   otherwise. On success it returns 0, or what its comment says. A function that makes a handle returns NULL and sets
 *   errno. The comments name the errnos without the sign.
 *
 *   ENOTRECOVERABLE means that the library has found a fault of its own (a Rust panic), and has written a message to
 *   stderr. The call may have done a part of its work. A function without a way to fail ends the process in such a
 *   case, with a message. No panic is thrown through a caller.
 *
 * POINTERS
 *
 *   No pointer may be NULL unless the comment says so. The functions whose names end in _free and _unref accept NULL.
 *
 *   Handles with _ref and _unref are reference-counted. The function that makes one returns the first reference. What
 *   keeps a handle (a poller an event, a table an event, a router an irqfd's event) takes a reference of its own, so
 *   the caller may give up its own at any time. Handles with _free have one owner.
 *
 * THREADS
 *
 *   Any number of threads may call functions on one doorbell_event, doorbell_poller, doorbell_table, doorbell_router,
 *   doorbell_value_queue, doorbell_latest, doorbell_level_source or doorbell_shared_event at the same time, without a
 *   lock (doorbell_shared_event_add_waker excepted). The other handles (doorbell_batch, doorbell_events,
 *   doorbell_reader, doorbell_poller_fd) may move from thread to thread, but one thread at a time uses them, and a
 *   callback that runs inside a call on one of them does not use it. The last _unref and each _free need the handle for
 *   themselves, as free(3) does.
 *
 *   What a thread did before it signalled or wrote is visible to the thread whose read took the count.
 *
 *   In a handler of a POSIX signal only these are safe: doorbell_event_signal, _signal_n, _try_write, _try_read,
 *   _try_read_all, _count and _readiness, and the same functions of doorbell_shared_event. The event must be one that
 *   only blocking reads and writes wait for: it is in no poller and has no irqfd. doorbell_poller_notify is safe too.
 *
 * TIME LIMITS
 *
 *   An int64_t of nanoseconds. A negative one is no limit, and 0 does not block. A POSIX signal does not end a call.
 *
 * CALLBACKS
 *
 *   A callback gets the `user` pointer that was given along with it. `destroy` may be NULL; otherwise it is called
 *   exactly once for each call that the callbacks were passed to, when the library will not call the other callbacks
 *   any more; if the call fails, then before it returns; if they are removed inside a callback, then at the end of a
 *   later call or in doorbell_reclaim. Callbacks run on any thread that signals, waits or calls the router, several of
 *   them at a time where the comment says so. The library holds no lock during the callbacks of a sink, except that
 *   `change_routes` may not change routes. Probes are called under a lock of their poller, so they may not call the
 *   poller. No callback may end by longjmp or by a C++ exception.
 *
 *   These calls wait for callbacks that other threads are in, of any router, table or poller, so a thread must not make
 *   them while it holds a lock that a callback takes: doorbell_router_deassign, _set_route, _change_routes and
 *   _synchronize; all doorbell_table_deassign functions; doorbell_poller_delete; the _unref or _free that ends a router
 *   or a poller; doorbell_reclaim. Inside a callback these calls do not wait (doorbell_reclaim fails), and what another
 *   thread has begun may still end after the call.
 *
 * FORK
 *
 *   A child of fork(2) may use a doorbell_shared_event, which stays the same event, and events, batches, tables, and
 *   pollers without file descriptors, which are copies. It must not use a poller that has file descriptors, or what
 *   another thread of the parent may have been changing at the time of the fork.
 */


#ifndef DOORBELL_H
#define DOORBELL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// A read would not block (EPOLLIN, POLLIN).
#define DOORBELL_READABLE 1

// A write of 1 would not block (EPOLLOUT, POLLOUT).
#define DOORBELL_WRITABLE 4

// The count is UINT64_MAX, the overflow state; or a file descriptor has an error (EPOLLERR, POLLERR).
#define DOORBELL_ERROR 8

// A read takes 1 and leaves the rest (EFD_SEMAPHORE).
#define DOORBELL_SEMAPHORE 1

// Blocking calls sleep at once, instead of looking again for up to 20 us as long as that pays.
#define DOORBELL_SPIN_NEVER 2

// Blocking calls never sleep.
#define DOORBELL_SPIN_ALWAYS 4

// The other end of a file descriptor has been closed (EPOLLHUP). Never of an event.
#define DOORBELL_HANG_UP 16

// Reported once for each time that the source becomes ready, and not as long as it is ready (EPOLLET).
#define DOORBELL_EDGE 2147483648

// Reported once, and then not until doorbell_poller_modify (EPOLLONESHOT).
#define DOORBELL_ONE_SHOT 1073741824

// Memory-mapped I/O.
#define DOORBELL_MMIO 0

// Port I/O (KVM_IOEVENTFD_FLAG_PIO).
#define DOORBELL_PIO 1

// Only writes of the value `datamatch` (KVM_IOEVENTFD_FLAG_DATAMATCH).
#define DOORBELL_DATAMATCH 2

// The sink is called on a thread of the router's own: for sinks that may block.
#define DOORBELL_WORKER 1

// No route: interrupts of the GSI are lost.
#define DOORBELL_ROUTE_NONE 0

// To a pin of an interrupt controller.
#define DOORBELL_ROUTE_PIN 1

// To a CPU, by a message.
#define DOORBELL_ROUTE_MSI 2

// The message names the device that sends it (KVM_MSI_VALID_DEVID).
#define DOORBELL_MSI_DEVID 1

// Signals and writes to several events that are delivered together. One owner; one thread at a time.
typedef struct doorbell_batch doorbell_batch;

// An eventfd in userspace: a 64-bit counter that threads signal and wait for. Reference-counted.
typedef struct doorbell_event doorbell_event;

// What a wait found. One owner. Each thread that waits has one of its own for each poller.
typedef struct doorbell_events doorbell_events;

// Keeps the latest value that the guest has written to a doorbell, and signals an event. Reference-counted.
typedef struct doorbell_latest doorbell_latest;

// A device's hold on a level-triggered line. One owner, but any thread may set it. It keeps the router.
typedef struct doorbell_level_source doorbell_level_source;

// An epoll in userspace, for events and file descriptors. Reference-counted.
typedef struct doorbell_poller doorbell_poller;

// A poller as a file descriptor in another event loop (epoll, GMainLoop, QEMU's AioContext). One owner.
typedef struct doorbell_poller_fd doorbell_poller_fd;

// A handle of a table that looks up faster. It keeps the table. One owner; one thread at a time, such as a vCPU.
typedef struct doorbell_reader doorbell_reader;

// Consumes events and interrupts the guest. Reference-counted.
typedef struct doorbell_router doorbell_router;

// An event in memory that processes share. Each process has a handle of its own. It has one owner, _free.
typedef struct doorbell_shared_event doorbell_shared_event;

// Which event a guest's write to an address signals. Reference-counted.
typedef struct doorbell_table doorbell_table;

// Keeps the values that the guest writes to doorbells, and signals an event for each. Reference-counted.
typedef struct doorbell_value_queue doorbell_value_queue;

// Tells whether a source has something to do, by a look at memory such as the available ring of a virtqueue. The
// poller turns the source's notifications off while it looks itself, and on before it sleeps. It calls these functions
// one at a time, on any thread that waits, and holds a lock during a call: they are short, and do not call the poller.
typedef struct doorbell_probe {
  // Whether there is something to do. Called in a loop. The load that says so acquires (atomic_load_explicit with
  // memory_order_acquire).
  bool (*ready)(void *user);
  // Polling begins: the other side need not notify. May be NULL.
  void (*begin)(void *user);
  // Polling ends: turns notifications on, then executes a full fence (atomic_thread_fence(memory_order_seq_cst)),
  // then looks once more, and returns whether there is something to do.
  bool (*end)(void *user);
  // May be NULL. See CALLBACKS.
  void (*destroy)(void *user);
  // What the functions are given.
  void *user;
} doorbell_probe;

// A source that is ready.
typedef struct doorbell_report {
  // The key that the source is registered under.
  size_t key;
  // DOORBELL_READABLE, _WRITABLE, _ERROR, _HANG_UP: all of what it is watched for that it is ready for.
  uint32_t ready;
} doorbell_report;

// Which guest writes ring a doorbell, as struct kvm_ioeventfd says it.
typedef struct doorbell_key {
  // The guest address at which a write begins.
  uint64_t address;
  // With DOORBELL_DATAMATCH: only writes of this value.
  uint64_t datamatch;
  // 1, 2, 4 or 8: writes of this many bytes. 0: of any length.
  uint32_t length;
  // DOORBELL_MMIO or DOORBELL_PIO, and DOORBELL_DATAMATCH.
  uint32_t flags;
} doorbell_key;

// Doorbells at equal distances, or with a stride of 0 told apart by the value that is written: the notify addresses
// of virtio-pci.
typedef struct doorbell_array {
  // The guest address of slot 0.
  uint64_t address;
  // The distance between two slots in bytes: a power of two, or 0.
  uint64_t stride;
  // How many slots there are.
  uint32_t slots;
  // As that of doorbell_key. A stride of 0 needs one.
  uint32_t length;
  // DOORBELL_MMIO or DOORBELL_PIO.
  uint32_t flags;
} doorbell_array;

// What a guest wrote.
typedef struct doorbell_kick {
  // The value, zero-extended.
  uint64_t value;
  // The slot of the doorbell in its array, or 0.
  uint32_t slot;
} doorbell_kick;

// A message-signalled interrupt.
typedef struct doorbell_msi {
  // Where it is written to.
  uint64_t address;
  // What is written.
  uint32_t data;
  // With DOORBELL_MSI_DEVID: the device that sends it. Not UINT32_MAX.
  uint32_t devid;
  // 0, or DOORBELL_MSI_DEVID.
  uint32_t flags;
} doorbell_msi;

// Where the interrupts of a GSI go.
typedef struct doorbell_route {
  // DOORBELL_ROUTE_NONE, DOORBELL_ROUTE_PIN or DOORBELL_ROUTE_MSI.
  uint32_t kind;
  // Of DOORBELL_ROUTE_PIN.
  uint32_t pin;
  // Of DOORBELL_ROUTE_MSI.
  struct doorbell_msi msi;
} doorbell_route;

// A route that is about to change.
typedef struct doorbell_route_change {
  // The GSI.
  uint32_t gsi;
  // The route until now.
  struct doorbell_route before;
  // The route from now on.
  struct doorbell_route after;
} doorbell_route_change;

// Where interrupts end: an interrupt controller that the VMM emulates, or that of the hypervisor. The functions are
// called on the threads that signal (see doorbell_router_new) and that call the router. They should be short. Calls
// for one line come one at a time, except those of `signal_msi`. The router holds no lock during a call, so the
// functions may call the router; except `change_routes`, during which the routes are locked.
typedef struct doorbell_sink {
  // The level of a pin.
  void (*set_level)(void *user, uint32_t gsi, uint32_t pin, bool level);
  // A message. Several threads may be in it at once, also for one GSI. The message is valid during the call.
  void (*signal_msi)(void *user, uint32_t gsi, const struct doorbell_msi *message);
  // An edge: the pin goes up and down again. NULL: two calls of `set_level`.
  void (*pulse)(void *user, uint32_t gsi, uint32_t pin);
  // Routes are about to change. Returns 0, or an errno if the sink cannot route like this, and then nothing changes.
  // Must not change routes, which waits for this call. May be NULL.
  int (*change_routes)(void *user, const struct doorbell_route_change *changes, size_t count);
  // A line is about to get an irqfd. Returns 0, or an errno if the sink cannot serve the line. May be NULL.
  int (*connect)(void *user, uint32_t gsi, bool resample);
  // Such an irqfd is gone. May be NULL.
  void (*disconnect)(void *user, uint32_t gsi, bool resample);
  // May be NULL. See CALLBACKS.
  void (*destroy)(void *user);
  // What the functions are given.
  void *user;
} doorbell_sink;

// A new route of a GSI.
typedef struct doorbell_gsi_route {
  // 0 to 4095.
  uint32_t gsi;
  // Its route.
  struct doorbell_route route;
} doorbell_gsi_route;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Makes lookups in tables cheaper: each then does without a fence, and each change of a table calls membarrier(2)
// instead, which interrupts all threads of the process. To be called once, at the start of main: before other threads,
// tables and seccomp filters, which must go on allowing membarrier(2). If it fails, everything works as before.
//
// ENOSYS, EPERM: the kernel or a filter refuses. EBUSY: a table has been used already.
int doorbell_use_membarrier(void);

// Does now what the first blocking call does otherwise: reads /sys/devices/system/cpu/online. To be called before
// threads get seccomp filters that do not allow that.
void doorbell_prepare_for_seccomp(void);

// Frees what threads have removed from pollers, tables and routers inside callbacks, where it could not be freed.
// Waits for callbacks. EDEADLK: it was called inside a callback, and did nothing.
int doorbell_reclaim(void);

// Makes an event with `initial` in it. `flags`: DOORBELL_SEMAPHORE, DOORBELL_SPIN_NEVER or DOORBELL_SPIN_ALWAYS.
//
// EINVAL: an unknown flag, or both of the SPIN flags.
struct doorbell_event *doorbell_event_new(uint64_t initial,
                                          uint32_t flags);

// Adds a reference, and returns the event.
struct doorbell_event *doorbell_event_ref(struct doorbell_event *event);

// Gives up a reference. The event goes with the last one.
void doorbell_event_unref(struct doorbell_event *event);

// Adds 1. Never blocks, unless a callback of a sink does.
void doorbell_event_signal(struct doorbell_event *event);

// Adds n, stopping at UINT64_MAX, the overflow state, in which every write blocks until the event is read. Never
// blocks, unless a callback of a sink does. (eventfd_signal() of the kernel)
void doorbell_event_signal_n(struct doorbell_event *event,
                             uint64_t n);

// Adds n. Blocks while the count would be more than UINT64_MAX - 1. (write(2) to an eventfd)
//
// EINVAL: n is UINT64_MAX.
int doorbell_event_write(struct doorbell_event *event, uint64_t n);

// As doorbell_event_write, without blocking. EAGAIN: there is no room for n.
int doorbell_event_try_write(struct doorbell_event *event, uint64_t n);

// As doorbell_event_write, with a time limit. ETIMEDOUT: there was no room for n in time.
int doorbell_event_write_timeout(struct doorbell_event *event, uint64_t n, int64_t timeout_ns);

// Takes the count, or 1 of a semaphore, and stores it in *value unless value is NULL. Blocks while the count is 0.
// (read(2) of an eventfd)
int doorbell_event_read(struct doorbell_event *event,
                        uint64_t *value);

// As doorbell_event_read, without blocking. EAGAIN: the count is 0.
int doorbell_event_try_read(struct doorbell_event *event, uint64_t *value);

// As doorbell_event_read, with a time limit. ETIMEDOUT: the count was 0 all the time.
int doorbell_event_read_timeout(struct doorbell_event *event, uint64_t *value, int64_t timeout_ns);

// Takes the whole count, also of a semaphore, without blocking. EAGAIN: it is 0.
int doorbell_event_try_read_all(struct doorbell_event *event, uint64_t *value);

// Waits until the count is not 0, and takes nothing. ETIMEDOUT: it was 0 all the time. (poll(2) for POLLIN)
int doorbell_event_wait_readable(struct doorbell_event *event,
                                 int64_t timeout_ns);

// The count now. Other threads may change it before the caller looks at the result.
uint64_t doorbell_event_count(const struct doorbell_event *event);

// What poll(2) would report of an eventfd with this count: DOORBELL_READABLE, DOORBELL_WRITABLE, DOORBELL_ERROR.
uint32_t doorbell_event_readiness(const struct doorbell_event *event);

// Makes a batch without events. `flags`: 0.
struct doorbell_batch *doorbell_batch_new(uint32_t flags);

// Commits the batch, and frees it. Writes for which there is no room are lost.
void doorbell_batch_free(struct doorbell_batch *batch);

// Adds an event, and stores its index in *index. If the event is in the batch already, the index is the same.
int doorbell_batch_add(struct doorbell_batch *batch,
                       struct doorbell_event *event,
                       size_t *index);

// Takes back one doorbell_batch_add. After the last one, what is pending for the event is delivered, and the event
// leaves the batch. Unless unwritten is NULL, the sum of pending writes for which there was no room is stored in it,
// or 0; those writes are lost. EINVAL: the index is not one of a doorbell_batch_add.
int doorbell_batch_remove(struct doorbell_batch *batch,
                          size_t index,
                          uint64_t *unwritten);

// Adds one signal to what is pending for an event. EINVAL: there is no such index.
int doorbell_batch_signal(struct doorbell_batch *batch, size_t index);

// Adds n signals. EINVAL: there is no such index.
int doorbell_batch_signal_n(struct doorbell_batch *batch, size_t index, uint64_t n);

// Adds a write of n, as doorbell_event_try_write makes it. EINVAL: there is no such index, or n is UINT64_MAX.
// EAGAIN: no event could hold the sum of the pending writes.
int doorbell_batch_write(struct doorbell_batch *batch,
                         size_t index,
                         uint64_t n);

// Delivers what is pending: first all counts change, then each thread that sleeps is woken once, then interrupts are
// sent. EAGAIN: there are writes for which there was no room. They stay pending; all else was delivered.
int doorbell_batch_commit(struct doorbell_batch *batch);

// Takes back all that is pending, signals and writes.
void doorbell_batch_discard(struct doorbell_batch *batch);

// Makes an event in a memfd of its own, and stores the descriptor of the memfd in *fd. The caller passes the
// descriptor to its peers, and closes it. `flags` as for doorbell_event_new.
struct doorbell_shared_event *doorbell_shared_event_create(uint64_t initial,
                                                           uint32_t flags,
                                                           int *fd);

// Attaches to the event at `offset` in a memfd, which is sealed against shrinking. The caller keeps the descriptor,
// and may close it. `flags`: DOORBELL_SPIN_NEVER or DOORBELL_SPIN_ALWAYS.
//
// EINVAL: there is no event there. EPERM: the file may be shortened.
struct doorbell_shared_event *doorbell_shared_event_attach(int fd,
                                                           uint64_t offset,
                                                           uint32_t flags);

// Makes an event in the 64 bytes at `memory`, which stay mapped until _free, and which this process touches through
// shared events only. `flags` as for doorbell_event_new. EINVAL: the address is not a multiple of 64.
struct doorbell_shared_event *doorbell_shared_event_create_at(void *memory,
                                                              uint64_t initial,
                                                              uint32_t flags);

// Attaches to the event in the 64 bytes at `memory`, under the conditions of doorbell_shared_event_create_at. EINVAL:
// there is no event there. `flags` as for doorbell_shared_event_attach.
struct doorbell_shared_event *doorbell_shared_event_attach_at(void *memory,
                                                              uint32_t flags);

// Gives up this process's handle. The event stays where it is.
void doorbell_shared_event_free(struct doorbell_shared_event *event);

// Adds 1. Never blocks.
void doorbell_shared_event_signal(struct doorbell_shared_event *event);

// Adds n, stopping at UINT64_MAX, the overflow state, in which every write blocks until the event is read. Never
// blocks. (eventfd_signal() of the kernel)
void doorbell_shared_event_signal_n(struct doorbell_shared_event *event,
                                    uint64_t n);

// Adds n. Blocks while the count would be more than UINT64_MAX - 1. (write(2) to an eventfd)
//
// EINVAL: n is UINT64_MAX.
int doorbell_shared_event_write(struct doorbell_shared_event *event, uint64_t n);

// As doorbell_shared_event_write, without blocking. EAGAIN: there is no room for n.
int doorbell_shared_event_try_write(struct doorbell_shared_event *event, uint64_t n);

// As doorbell_shared_event_write, with a time limit. ETIMEDOUT: there was no room for n in time.
int doorbell_shared_event_write_timeout(struct doorbell_shared_event *event,
                                        uint64_t n,
                                        int64_t timeout_ns);

// Takes the count, or 1 of a semaphore, and stores it in *value unless value is NULL. Blocks while the count is 0.
// (read(2) of an eventfd)
int doorbell_shared_event_read(struct doorbell_shared_event *event,
                               uint64_t *value);

// As doorbell_shared_event_read, without blocking. EAGAIN: the count is 0.
int doorbell_shared_event_try_read(struct doorbell_shared_event *event, uint64_t *value);

// As doorbell_shared_event_read, with a time limit. ETIMEDOUT: the count was 0 all the time.
int doorbell_shared_event_read_timeout(struct doorbell_shared_event *event,
                                       uint64_t *value,
                                       int64_t timeout_ns);

// Takes the whole count, also of a semaphore, without blocking. EAGAIN: it is 0.
int doorbell_shared_event_try_read_all(struct doorbell_shared_event *event, uint64_t *value);

// Waits until the count is not 0, and takes nothing. ETIMEDOUT: it was 0 all the time. (poll(2) for POLLIN)
int doorbell_shared_event_wait_readable(struct doorbell_shared_event *event,
                                        int64_t timeout_ns);

// The count now. Other threads may change it before the caller looks at the result.
uint64_t doorbell_shared_event_count(const struct doorbell_shared_event *event);

// What poll(2) would report of an eventfd with this count: DOORBELL_READABLE, DOORBELL_WRITABLE, DOORBELL_ERROR.
uint32_t doorbell_shared_event_readiness(const struct doorbell_shared_event *event);

// Gives this process the means to wake a peer that sleeps in epoll or in a poller: one end of a pair of connected
// Unix sockets (stream or seqpacket), of which the peer watches the other end. It is sent one byte now, and one byte
// each time that a change made through this handle finds the event armed. The library duplicates the descriptor; the
// caller closes its own. No other thread may use the handle during this call.
//
// ENOTSOCK, EAFNOSUPPORT, ENOTCONN: it is not such a socket.
int doorbell_shared_event_add_waker(struct doorbell_shared_event *event,
                                    int socket);

// Asks for one byte in the socket after the next change of `interest`: DOORBELL_READABLE (signals and writes),
// DOORBELL_WRITABLE (reads), or both. Returns what the event is ready for now, as doorbell_shared_event_readiness.
// If that is not what the caller waits for, the caller may sleep until the socket has a byte. EINVAL: no interest.
int doorbell_shared_event_arm(struct doorbell_shared_event *event,
                              uint32_t interest);

// Makes a poller. `flags`: DOORBELL_SPIN_NEVER or DOORBELL_SPIN_ALWAYS, for how its waits wait.
struct doorbell_poller *doorbell_poller_new(uint32_t flags);

// Adds a reference, and returns the poller.
struct doorbell_poller *doorbell_poller_ref(struct doorbell_poller *poller);

// Gives up a reference. With the last one all registrations end.
void doorbell_poller_unref(struct doorbell_poller *poller);

// Watches an event, under a key of the caller's choice. `watch`: DOORBELL_READABLE, DOORBELL_WRITABLE, both, or 0 for
// errors alone, and DOORBELL_EDGE or DOORBELL_ONE_SHOT. An error is always reported. One event may be registered under
// several keys.
//
// EEXIST: the key is in use. EINVAL: an unknown flag.
int doorbell_poller_add(struct doorbell_poller *poller,
                        struct doorbell_event *event,
                        size_t key,
                        uint32_t watch);

// Watches a file descriptor, as epoll_ctl with EPOLL_CTL_ADD does. The caller keeps the descriptor open until
// doorbell_poller_delete.
//
// EEXIST: the key is in use, or the descriptor is registered. EBADF. EPERM: it cannot be waited for.
int doorbell_poller_add_fd(struct doorbell_poller *poller,
                           int fd,
                           size_t key,
                           uint32_t watch);

// Carries what arrives in an eventfd over into an event, inside the waits of this poller, and watches the event: for a
// kick that may come from KVM or a vhost peer by the eventfd, and from this process by the event. The library keeps a
// duplicate of the descriptor until doorbell_poller_delete.
//
// EINVAL: the descriptor is not an eventfd. EEXIST, EBADF.
int doorbell_poller_add_bound(struct doorbell_poller *poller,
                              int eventfd,
                              struct doorbell_event *event,
                              size_t key,
                              uint32_t watch);

// Registers a source that has nothing but a probe. After the probe's `end`, a thread that gives the source something
// to do calls doorbell_poller_notify.
//
// EEXIST: the key is in use. EINVAL: `ready` or `end` is NULL.
int doorbell_poller_add_probe(struct doorbell_poller *poller,
                              size_t key,
                              const struct doorbell_probe *probe);

// Gives a probe to what is registered under a key. A source has one probe at most; a second one replaces it.
//
// ENOENT: nothing is registered there. EINVAL: `ready` or `end` is NULL, or the source is watched as one-shot.
int doorbell_poller_attach_probe(struct doorbell_poller *poller,
                                 size_t key,
                                 const struct doorbell_probe *probe);

// Changes what a source is watched for, and re-arms it if it is one-shot. ENOENT: nothing is registered there.
int doorbell_poller_modify(struct doorbell_poller *poller,
                           size_t key,
                           uint32_t watch);

// Ends a registration. A wait that begins afterwards does not report it. ENOENT: nothing is registered there.
int doorbell_poller_delete(struct doorbell_poller *poller,
                           size_t key);

// Makes one thread return from doorbell_poller_wait: one that waits now, or else the next one that would sleep.
void doorbell_poller_notify(struct doorbell_poller *poller);

// Makes each thread (each doorbell_events) return from doorbell_poller_wait once, now or the next time.
void doorbell_poller_notify_all(struct doorbell_poller *poller);

// Makes a buffer for up to `capacity` reports of a wait. EINVAL: 0, or more than INT_MAX.
struct doorbell_events *doorbell_events_new(size_t capacity);

// Frees a buffer.
void doorbell_events_free(struct doorbell_events *events);

// The reports of the last wait, as many as it returned. Valid until the buffer's next wait. Sources that have been
// ready longest come first.
const struct doorbell_report *doorbell_events_reports(const struct doorbell_events *events);

// Waits until something is ready, a thread calls doorbell_poller_notify, or the time is up. Returns how many reports
// there are in `events`: 0 after the time is up, and possibly after a notification. (epoll_wait)
int doorbell_poller_wait(struct doorbell_poller *poller,
                         struct doorbell_events *events,
                         int64_t timeout_ns);

// Looks once, without sleeping: for a device that has other work to do. It looks at file descriptors in one call of
// 32. Returns how many reports there are.
int doorbell_poller_look(struct doorbell_poller *poller,
                         struct doorbell_events *events);

// Makes a file descriptor for a poller. The handle keeps the poller.
struct doorbell_poller_fd *doorbell_poller_fd_new(struct doorbell_poller *poller);

// Frees the handle. The outer loop must have stopped watching the descriptor.
void doorbell_poller_fd_free(struct doorbell_poller_fd *fd);

// The descriptor to watch for reading. It belongs to the poller: do not close it, and do not read it.
int doorbell_poller_fd_get(const struct doorbell_poller_fd *fd);

// Before the outer loop sleeps. Returns 0 if it may sleep: the descriptor becomes readable when something is ready.
// Otherwise returns how many reports there are in `events`, or -EAGAIN if there are none and the loop is to call
// this again before it sleeps.
int doorbell_poller_fd_arm(struct doorbell_poller_fd *fd,
                           struct doorbell_events *events);

// After the outer loop has woken, for whatever reason.
void doorbell_poller_fd_disarm(struct doorbell_poller_fd *fd);

// Makes an empty table.
struct doorbell_table *doorbell_table_new(void);

// Adds a reference, and returns the table.
struct doorbell_table *doorbell_table_ref(struct doorbell_table *table);

// Gives up a reference. The table goes with the last one and the last reader.
void doorbell_table_unref(struct doorbell_table *table);

// Adds a doorbell that signals an event. (KVM_IOEVENTFD)
//
// EEXIST: another doorbell takes writes that this one would take. EINVAL: an unknown length or flag, writes that would
// end at 2^64 or beyond, or a datamatch that needs more bytes than the length has.
int doorbell_table_assign(struct doorbell_table *table,
                          const struct doorbell_key *key,
                          struct doorbell_event *event);

// Removes a doorbell. When this returns, no signal comes through it any more. (KVM_IOEVENTFD_FLAG_DEASSIGN)
//
// ENOENT: there is no doorbell with this key and this event.
int doorbell_table_deassign(struct doorbell_table *table,
                            const struct doorbell_key *key,
                            struct doorbell_event *event);

// Adds an array of doorbells; `events` has one for each slot. Errors as doorbell_table_assign. EINVAL also for a
// stride that is not a power of two, no slots, or a stride of 0 without a length that holds the last slot's number.
int doorbell_table_assign_array(struct doorbell_table *table,
                                const struct doorbell_array *array,
                                struct doorbell_event *const *events);

// Removes an array of doorbells, as doorbell_table_deassign.
int doorbell_table_deassign_array(struct doorbell_table *table,
                                  const struct doorbell_array *array,
                                  struct doorbell_event *const *events);

// Adds a doorbell that puts what is written into a queue. Errors as doorbell_table_assign.
int doorbell_table_assign_value_queue(struct doorbell_table *table,
                                      const struct doorbell_key *key,
                                      struct doorbell_value_queue *queue);

// Removes a doorbell that puts what is written into a queue, as doorbell_table_deassign.
int doorbell_table_deassign_value_queue(struct doorbell_table *table,
                                        const struct doorbell_key *key,
                                        struct doorbell_value_queue *queue);

// Adds a doorbell that keeps the latest value. Errors as doorbell_table_assign.
int doorbell_table_assign_latest(struct doorbell_table *table,
                                 const struct doorbell_key *key,
                                 struct doorbell_latest *latest);

// Removes a doorbell that keeps the latest value, as doorbell_table_deassign.
int doorbell_table_deassign_latest(struct doorbell_table *table,
                                   const struct doorbell_key *key,
                                   struct doorbell_latest *latest);

// Offers the table a guest's write of `length` bytes, in the byte order of the host, at `address` of the bus
// DOORBELL_MMIO or DOORBELL_PIO. Returns 1 if a doorbell took it. 0: the write is for the device models.
int doorbell_table_write(struct doorbell_table *table,
                         uint32_t bus,
                         uint64_t address,
                         const void *data,
                         size_t length);

// Makes a reader of a table.
struct doorbell_reader *doorbell_table_reader(struct doorbell_table *table);

// Frees a reader.
void doorbell_reader_free(struct doorbell_reader *reader);

// As doorbell_table_write.
int doorbell_reader_write(struct doorbell_reader *reader,
                          uint32_t bus,
                          uint64_t address,
                          const void *data,
                          size_t length);

// Makes a queue for up to `capacity` values, which signals `event` for each. A write that finds it full is not taken.
// EINVAL: a capacity of 0, or of more than 2^20.
struct doorbell_value_queue *doorbell_value_queue_new(struct doorbell_event *event,
                                                      size_t capacity);

// Adds a reference, and returns the queue.
struct doorbell_value_queue *doorbell_value_queue_ref(struct doorbell_value_queue *queue);

// Gives up a reference.
void doorbell_value_queue_unref(struct doorbell_value_queue *queue);

// Takes the oldest value. EAGAIN: there is none.
int doorbell_value_queue_pop(struct doorbell_value_queue *queue, struct doorbell_kick *kick);

// Makes a keeper of the latest value, `value` at first, which signals `event`.
struct doorbell_latest *doorbell_latest_new(struct doorbell_event *event, uint64_t value);

// Adds a reference, and returns the keeper.
struct doorbell_latest *doorbell_latest_ref(struct doorbell_latest *latest);

// Gives up a reference.
void doorbell_latest_unref(struct doorbell_latest *latest);

// The latest value.
uint64_t doorbell_latest_value(const struct doorbell_latest *latest);

// Makes a router without routes. `flags`: DOORBELL_WORKER. The sink is copied. A signal calls the sink before the
// signal returns. If another thread is calling the sink for the same pin, that thread makes the call. A signal inside
// a callback calls the sink when the outermost callback has returned. With DOORBELL_WORKER a thread of the router's
// makes all these calls, soon after the signal.
//
// EINVAL: an unknown flag, or `set_level` or `signal_msi` is NULL. EAGAIN: no thread could be started.
struct doorbell_router *doorbell_router_new(const struct doorbell_sink *sink,
                                            uint32_t flags);

// Adds a reference, and returns the router.
struct doorbell_router *doorbell_router_ref(struct doorbell_router *router);

// Gives up a reference. With the last one, all events are deassigned.
void doorbell_router_unref(struct doorbell_router *router);

// Makes an event interrupt: the router takes its count away at each signal. `resample` is NULL for an edge. Otherwise
// a signal raises the line, and doorbell_router_ack lowers it and signals `resample`. (KVM_IRQFD)
//
// EBUSY: the event is assigned already. EINVAL: the event is its own resample event. What `connect` returned.
int doorbell_router_assign(struct doorbell_router *router,
                           struct doorbell_event *event,
                           uint32_t gsi,
                           struct doorbell_event *resample);

// Ends what doorbell_router_assign began; does nothing if the event is not assigned to this GSI. When this returns, no
// interrupt comes of the event any more. (KVM_IRQFD_FLAG_DEASSIGN)
void doorbell_router_deassign(struct doorbell_router *router,
                              struct doorbell_event *event,
                              uint32_t gsi);

// Changes the route of one GSI. When this returns, no interrupt takes the old one. (KVM_SET_GSI_ROUTING)
//
// EINVAL: the GSI is above 4095, another GSI has the pin, or an unknown kind or flag. What `change_routes` returned.
int doorbell_router_set_route(struct doorbell_router *router,
                              uint32_t gsi,
                              const struct doorbell_route *route);

// Changes several routes in one step, or none of them. Errors as doorbell_router_set_route.
int doorbell_router_change_routes(struct doorbell_router *router,
                                  const struct doorbell_gsi_route *routes,
                                  size_t count);

// Masks a line: what comes meanwhile is kept as one pending bit.
void doorbell_router_mask(struct doorbell_router *router, uint32_t gsi);

// Unmasks a line, and sends what is pending.
void doorbell_router_unmask(struct doorbell_router *router, uint32_t gsi);

// Sets the route of a masked line and unmasks it, in one step, as a guest does with a vector of MSI-X. Errors as
// doorbell_router_set_route. EINVAL also for DOORBELL_ROUTE_NONE.
int doorbell_router_unmask_with_route(struct doorbell_router *router,
                                      uint32_t gsi,
                                      const struct doorbell_route *route);

// Whether a line is masked.
bool doorbell_router_is_masked(const struct doorbell_router *router, uint32_t gsi);

// Whether a masked line has an interrupt pending (the pending bit of MSI-X).
bool doorbell_router_is_pending(const struct doorbell_router *router, uint32_t gsi);

// Sets the level of a line in the name of the VMM. (KVM_IRQ_LINE)
void doorbell_router_set_level(struct doorbell_router *router, uint32_t gsi, bool level);

// Whether the line is up at its pin.
bool doorbell_router_level(const struct doorbell_router *router, uint32_t gsi);

// The guest's end of interrupt: lowers the line, then signals the resample events. The line is raised again if
// something still holds it up.
void doorbell_router_ack(struct doorbell_router *router,
                         uint32_t gsi);

// Waits until every signal made before has reached the sink.
void doorbell_router_synchronize(struct doorbell_router *router);

// Makes a hold on a line, for devices that share it. It does not hold the line up at first.
struct doorbell_level_source *doorbell_level_source_new(struct doorbell_router *router,
                                                        uint32_t gsi);

// Lets the line go, and frees the hold.
void doorbell_level_source_free(struct doorbell_level_source *source);

// Holds the line up, or lets it go.
void doorbell_level_source_set(struct doorbell_level_source *source, bool level);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DOORBELL_H */
