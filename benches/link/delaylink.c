/*
 * Makes a slow link on one machine: two network namespaces, joined by a wire that delays every
 * packet by a fixed time and carries a fixed number of bits per second each way. It may lose
 * packets: each of them with the same probability, whatever became of those before it.
 *
 *   delaylink DELAY_US MBIT_PER_S [LOSS_PERMILLE]
 *
 * The delay is that of one way, so a round trip takes twice as long. Which packets are lost is a
 * matter of their number in their direction alone, the same in every run.
 *
 * The near end is 192.0.2.1, the far end 192.0.2.2. One line on standard output names the files
 * of the two namespaces, near end first, for setns() or `nsenter --net=FILE`. It ends when standard
 * input does. The namespaces have no name: nothing is left of them once this program and those
 * that it let in have ended, however that came about.
 *
 * Each end is a TUN device; this program is the wire between them. Needs root.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define NANOSECONDS 1000000000ull

/* What an Ethernet frame carries (bytes). */
#define PACKET_SIZE_MAX 1500

/* Packets that one direction holds at most: 0.3 s of full packets at 1 Gbit/s. */
#define WIRE_LENGTH 32768

/* How long a packet may wait before the wire takes it. While the wire is booked for longer, packets
 * stay in the queue of the device, which drops what does not fit, as a router does. */
#define BACKLOG_NS (10 * 1000000ull)

/* Length of that queue, about one bandwidth-delay product of 50 ms at 1 Gbit/s (packets). */
#define DEVICE_QUEUE_LENGTH 4096

/* Room for one TCP stream to fill the link: least, first and most (bytes). By default the kernel
 * allows a sender 4 MB, which is less than such a link holds. */
#define STREAM_BUFFER "4096 131072 33554432"

/* Packets moved in one direction before the other one has its turn. */
#define BATCH_COUNT 64

struct packet {
    uint64_t due_at;
    size_t size;
    char bytes[PACKET_SIZE_MAX];
};

/* What the wire is like, the same in both directions. */
struct nature {
    uint64_t delay_ns;
    double ns_per_byte;
    double loss; /* probability, 0 to 1 */
};

/* One direction. `first` and `last` only grow; a packet's place is its number modulo the length. */
struct wire {
    struct packet *packets;
    uint64_t first, last;
    uint64_t free_at; /* when the last packet has left the sender */
    uint64_t chance;  /* state of the generator that says which packets are lost */
    int from, to;
};

static void fail(const char *what)
{
    fprintf(stderr, "delaylink: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * NANOSECONDS + (uint64_t)time.tv_nsec;
}

static void set_up(int control, const char *device)
{
    struct ifreq request = {.ifr_flags = IFF_UP};
    strcpy(request.ifr_name, device);
    if (ioctl(control, SIOCSIFFLAGS, &request) != 0)
        fail(device);
}

static void set_address(int control, unsigned long which, const char *text)
{
    struct ifreq request = {.ifr_name = "link0"};
    struct sockaddr_in address = {.sin_family = AF_INET};
    inet_pton(AF_INET, text, &address.sin_addr);
    memcpy(&request.ifr_addr, &address, sizeof address);
    if (ioctl(control, which, &request) != 0)
        fail(text);
}

static void write_setting(const char *path, const char *value)
{
    FILE *file = fopen(path, "w");
    if (file == NULL || fputs(value, file) < 0 || fclose(file) != 0)
        fail(path);
}

/* Enters a new namespace with a device that has the given address. Returns the device, and in
 * `namespace` the namespace. */
static int make_end(const char *address, int *namespace)
{
    if (unshare(CLONE_NEWNET) != 0)
        fail("cannot make a network namespace, are you root?");
    *namespace = open("/proc/self/ns/net", O_RDONLY);
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (*namespace < 0 || device < 0)
        fail("/dev/net/tun");
    struct ifreq request = {.ifr_name = "link0", .ifr_flags = IFF_TUN | IFF_NO_PI};
    if (ioctl(device, TUNSETIFF, &request) != 0)
        fail("cannot make a TUN device");
    int control = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq queue = {.ifr_name = "link0", .ifr_qlen = DEVICE_QUEUE_LENGTH};
    if (control < 0 || ioctl(control, SIOCSIFTXQLEN, &queue) != 0)
        fail("cannot set the length of the queue");
    set_address(control, SIOCSIFADDR, address);
    set_address(control, SIOCSIFNETMASK, "255.255.255.252");
    set_up(control, "lo");
    set_up(control, "link0");
    close(control);
    /* These show and set the values of the namespace that one is in. */
    write_setting("/proc/sys/net/ipv4/tcp_rmem", STREAM_BUFFER);
    write_setting("/proc/sys/net/ipv4/tcp_wmem", STREAM_BUFFER);
    return device;
}

static int is_full(const struct wire *wire, uint64_t time)
{
    return wire->last - wire->first == WIRE_LENGTH || wire->free_at > time + BACKLOG_NS;
}

/* The next number of a SplitMix64 generator, 0 to 1 without 1. */
static double draw(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15;
    uint64_t mixed = *state;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
    mixed ^= mixed >> 31;
    return (double)(mixed >> 11) / (double)(1ull << 53);
}

/* Puts waiting packets on the wire. */
static void take(struct wire *wire, const struct nature *nature)
{
    for (int count = 0; count < BATCH_COUNT; count++) {
        uint64_t time = now();
        if (is_full(wire, time))
            return;
        struct packet *packet = &wire->packets[wire->last % WIRE_LENGTH];
        ssize_t size = read(wire->from, packet->bytes, PACKET_SIZE_MAX);
        if (size <= 0)
            return;
        packet->size = (size_t)size;
        uint64_t starts_at = wire->free_at > time ? wire->free_at : time;
        wire->free_at = starts_at + (uint64_t)((double)size * nature->ns_per_byte);
        packet->due_at = wire->free_at + nature->delay_ns;
        /* What gets lost does so on the wire: it has taken its time there like any other. */
        if (draw(&wire->chance) >= nature->loss)
            wire->last++;
    }
}

/* Hands over the packets that are due. Returns when to come again for the next one. */
static uint64_t deliver(struct wire *wire)
{
    for (int count = 0; wire->first != wire->last; count++) {
        struct packet *packet = &wire->packets[wire->first % WIRE_LENGTH];
        if (packet->due_at > now() || count == BATCH_COUNT)
            return packet->due_at;
        /* What the receiver does not take is lost, as on any network. */
        ssize_t written = write(wire->to, packet->bytes, packet->size);
        (void)written;
        wire->first++;
    }
    return UINT64_MAX;
}

static void run(struct wire wires[2], const struct nature *nature)
{
    for (;;) {
        struct pollfd polled[3] = {{.fd = STDIN_FILENO, .events = POLLIN}};
        uint64_t wake_at = now() + NANOSECONDS;
        for (int i = 0; i < 2; i++) {
            uint64_t due_at = deliver(&wires[i]);
            if (due_at < wake_at)
                wake_at = due_at;
            uint64_t time = now();
            int full = is_full(&wires[i], time);
            /* Half of the backlog later there is room again, if time is all that it takes. */
            if (full && time + BACKLOG_NS / 2 < wake_at)
                wake_at = time + BACKLOG_NS / 2;
            /* A negative descriptor is not looked at. */
            polled[1 + i].fd = full ? -1 : wires[i].from;
            polled[1 + i].events = POLLIN;
        }
        uint64_t time = now();
        uint64_t rest = wake_at > time ? wake_at - time : 0;
        struct timespec timeout = {(time_t)(rest / NANOSECONDS), (long)(rest % NANOSECONDS)};
        if (ppoll(polled, 3, &timeout, NULL) < 0 && errno != EINTR)
            fail("poll");
        if (polled[0].revents != 0) {
            char byte;
            if (read(STDIN_FILENO, &byte, 1) <= 0)
                return;
        }
        for (int i = 0; i < 2; i++)
            if (polled[1 + i].revents != 0)
                take(&wires[i], nature);
    }
}

int main(int count, char **arguments)
{
    int complete = count == 3 || count == 4;
    double delay_us = complete ? atof(arguments[1]) : -1;
    double mbit_per_s = complete ? atof(arguments[2]) : -1;
    double loss_permille = count == 4 ? atof(arguments[3]) : 0;
    if (delay_us < 0 || mbit_per_s <= 0 || loss_permille < 0 || loss_permille > 1000) {
        fprintf(stderr, "usage: delaylink DELAY_US MBIT_PER_S [LOSS_PERMILLE]\n");
        return 2;
    }
    /* The default lets the kernel wake us 50 us late. */
    prctl(PR_SET_TIMERSLACK, 1000);
    int near_namespace, far_namespace;
    int near = make_end("192.0.2.1", &near_namespace);
    int far = make_end("192.0.2.2", &far_namespace);
    /* Each direction has losses of its own. */
    struct wire wires[2] = {
        {.from = near, .to = far, .chance = 1},
        {.from = far, .to = near, .chance = 2},
    };
    struct nature nature = {
        .delay_ns = (uint64_t)(delay_us * 1000),
        .ns_per_byte = 8000 / mbit_per_s,
        .loss = loss_permille / 1000,
    };
    for (int i = 0; i < 2; i++) {
        wires[i].packets = calloc(WIRE_LENGTH, sizeof(struct packet));
        if (wires[i].packets == NULL)
            fail("memory");
    }
    printf("/proc/%d/fd/%d /proc/%d/fd/%d\n", getpid(), near_namespace, getpid(), far_namespace);
    fflush(stdout);
    run(wires, &nature);
    return 0;
}
