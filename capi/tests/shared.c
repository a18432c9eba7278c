/*
 * A shared event between two processes, each of which sleeps in a poller of its own.
 *
 *   shared         the peer is this program
 *   shared PEER    the peer is another program: examples/rust_peer.rs
 *
 * The peer inherits the event's memfd and three sockets. First it reads what this process signals, and reports the sum;
 * then it signals, and this process reads.
 */
#include "test.h"
#include <sys/socket.h>
#include <sys/wait.h>

enum { SIGNALS = 2000 };
/* The peer's descriptors. */
enum { MEMFD = 10, WATCHED, WAKER, CONTROL };

static void expect_sum(int control, uint64_t expected)
{
    uint64_t sum;
    CHECK(read(control, &sum, sizeof sum) == sizeof sum && sum == expected);
}

/* Reads until the sum is there. Sleeps in the poller alone. Returns how often that was. */
static int read_all(doorbell_shared_event *event, int watched)
{
    enum { SOCKET = 1 };
    uint64_t value, sum = 0;
    int sleeps = 0;
    char bytes[64];
    doorbell_poller *poller = doorbell_poller_new(0);
    doorbell_events *events = doorbell_events_new(1);
    CHECK(doorbell_poller_add_fd(poller, watched, SOCKET, DOORBELL_READABLE) == 0);
    while (sum < SIGNALS) {
        int ready = doorbell_shared_event_arm(event, DOORBELL_READABLE);
        CHECK(ready >= 0);
        if (!(ready & DOORBELL_READABLE)) {
            CHECK(doorbell_poller_wait(poller, events, -1) == 1);
            CHECK(doorbell_events_reports(events)->key == SOCKET);
            CHECK(recv(watched, bytes, sizeof bytes, MSG_DONTWAIT) > 0);
            sleeps++;
        }
        int result = doorbell_shared_event_try_read(event, &value);
        CHECK(result == 0 || result == -EAGAIN);
        sum += result == 0 ? value : 0;
    }
    CHECK(sum == SIGNALS);
    doorbell_poller_unref(poller);
    doorbell_events_free(events);
    return sleeps;
}

static void signal_all(doorbell_shared_event *event)
{
    for (int i = 0; i < SIGNALS; i++) {
        if (i % 2)
            doorbell_shared_event_signal(event);
        else
            CHECK(doorbell_shared_event_write(event, 1) == 0);
        if (rand() % 4 == 0)
            sleep_ns(rand() % 100000);
    }
}

static int be_the_peer(void)
{
    uint64_t sum = SIGNALS;
    doorbell_shared_event *event = doorbell_shared_event_attach(MEMFD, 0, 0);
    CHECK(event && doorbell_shared_event_add_waker(event, WAKER) == 0);
    read_all(event, WATCHED);
    CHECK(write(CONTROL, &sum, sizeof sum) == sizeof sum);
    signal_all(event);
    expect_sum(CONTROL, SIGNALS);
    doorbell_shared_event_free(event);
    return 0;
}

/* The calls that fail. */
static void refusals(void)
{
    static _Alignas(64) unsigned char memory[128];
    int pair[2], fd;
    doorbell_shared_event *event, *other;
    FAILS_NULL(doorbell_shared_event_attach(-1, 0, 0), EBADF);
    FAILS_NULL(doorbell_shared_event_attach(9999, 0, 0), EBADF);
    FAILS_NULL(doorbell_shared_event_attach(0, 0, DOORBELL_SEMAPHORE), EINVAL);
    FAILS_NULL(doorbell_shared_event_create(0, 16, &fd), EINVAL);
    FAILS_NULL(doorbell_shared_event_attach_at(memory, 0), EINVAL);
    FAILS_NULL(doorbell_shared_event_create_at(memory + 8, 0, 0), EINVAL);
    event = doorbell_shared_event_create_at(memory, 3, DOORBELL_SEMAPHORE);
    other = doorbell_shared_event_attach_at(memory, DOORBELL_SPIN_NEVER);
    CHECK(event && other && doorbell_shared_event_try_read(other, NULL) == 0);
    CHECK(doorbell_shared_event_count(event) == 2);
    FAILS(doorbell_shared_event_arm(event, 0), EINVAL);
    FAILS(doorbell_shared_event_add_waker(event, -1), EBADF);
    FAILS(doorbell_shared_event_add_waker(event, 9999), EBADF);
    CHECK(pipe(pair) == 0);
    FAILS(doorbell_shared_event_add_waker(event, pair[1]), ENOTSOCK);
    CHECK(close(pair[0]) == 0 && close(pair[1]) == 0);
    doorbell_shared_event_free(event);
    doorbell_shared_event_free(other);
    doorbell_shared_event_free(NULL);

    event = doorbell_shared_event_create(0, 0, &fd);
    CHECK(event);
    FAILS_NULL(doorbell_shared_event_attach(fd, 4096, 0), EINVAL);
    FAILS_NULL(doorbell_shared_event_attach(fd, 8, 0), EINVAL);
    CHECK(close(fd) == 0);
    doorbell_shared_event_free(event);
}

/* How many bytes there are in a socket. */
static ssize_t bytes_in(int socket)
{
    char bytes[64];
    ssize_t count = recv(socket, bytes, sizeof bytes, MSG_DONTWAIT);
    CHECK(count > 0 || (count == -1 && errno == EAGAIN));
    return count < 0 ? 0 : count;
}

/* A byte comes for what was asked for, and once. */
static void interests(void)
{
    static const struct {
        uint32_t interest;
        int of_signal, of_read;
    } cases[] = {{DOORBELL_READABLE, 1, 0},
                 {DOORBELL_WRITABLE, 0, 1},
                 {DOORBELL_READABLE | DOORBELL_WRITABLE, 1, 1}};
    int fd, pair[2];
    doorbell_shared_event *mine = doorbell_shared_event_create(0, 0, &fd);
    doorbell_shared_event *yours = doorbell_shared_event_attach(fd, 0, 0);
    CHECK(mine && yours && close(fd) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(doorbell_shared_event_add_waker(yours, pair[1]) == 0 && close(pair[1]) == 0);
    CHECK(bytes_in(pair[0]) == 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK(doorbell_shared_event_arm(mine, cases[i].interest) == DOORBELL_WRITABLE);
        doorbell_shared_event_signal(yours);
        CHECK(bytes_in(pair[0]) == cases[i].of_signal);
        CHECK(doorbell_shared_event_try_read(yours, NULL) == 0);
        CHECK(bytes_in(pair[0]) == cases[i].of_read);
    }
    doorbell_shared_event_free(yours);
    char byte;
    CHECK(recv(pair[0], &byte, 1, 0) == 0); /* the end of the peer shows */
    doorbell_shared_event_free(mine);
    close(pair[0]);
}

int main(int argc, char **argv)
{
    const char *peer = argc > 1 ? argv[1] : argv[0];
    int memfd, to_us[2], to_peer[2], control[2], status;
    uint64_t sum = SIGNALS;
    begin_tests();
    if (argc > 2)
        return be_the_peer();
    refusals();
    interests();

    doorbell_shared_event *event = doorbell_shared_event_create(0, 0, &memfd);
    CHECK(event && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, to_us) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, to_peer) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(dup2(memfd, MEMFD) == MEMFD && dup2(to_peer[1], WATCHED) == WATCHED);
        CHECK(dup2(to_us[1], WAKER) == WAKER && dup2(control[1], CONTROL) == CONTROL);
        execl(peer, peer, "peer", "of-shared", NULL);
        CHECK(!"the peer runs");
    }
    /* What is the peer's is closed here, so that its death shows. */
    close(memfd), close(to_us[1]), close(to_peer[1]), close(control[1]);
    CHECK(doorbell_shared_event_add_waker(event, to_peer[0]) == 0);
    signal_all(event);
    expect_sum(control[0], SIGNALS);
    int sleeps = read_all(event, to_us[0]);
    CHECK(write(control[0], &sum, sizeof sum) == sizeof sum);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(doorbell_shared_event_count(event) == 0);
    doorbell_shared_event_free(event);
    close(to_us[0]), close(to_peer[0]), close(control[0]);
    printf("shared, with the peer %s, %d sleeps: 3 passed, 0 failed\n", peer, sleeps);
    return 0;
}
