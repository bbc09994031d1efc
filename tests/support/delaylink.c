/*
 * delaylink DELAY_US: two network namespaces, joined by a link on which every packet takes
 * DELAY_US microseconds, each way. Nothing is lost while fewer than QUEUE_LENGTH are on their way.
 *
 * Each namespace has a TUN device "link0" and an address, 10.86.0.1 and 10.86.0.2. When all is
 * there, one line tells the process that started this one how to get in: the numbers of two
 * descriptors, to be opened as /proc/PID/fd/NUMBER. The end of standard input ends the program, and
 * with it both namespaces: nothing is left behind, whatever becomes of its parent.
 *
 * In C because the ioctls of TUN devices cannot be had without unsafe code.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
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

#define DEVICE "link0"
#define PACKET_SIZE 2048
#define QUEUE_LENGTH 16384
#define BATCH_LENGTH 256
#define TX_QUEUE_LENGTH 10000
#define SECOND_NS 1000000000LL

/* One packet on its way. */
struct packet {
    int64_t due_ns;
    ssize_t size;
    unsigned char bytes[PACKET_SIZE];
};

/* One direction: a ring of packets in the order of their arrival. */
struct direction {
    int source;
    int target;
    struct packet *ring;
    uint64_t first;
    uint64_t end;
};

/* One end: its TUN device and its namespace. */
struct end {
    int tun;
    int name_space;
};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND_NS + now.tv_nsec;
}

static void set_up(int control, const char *device)
{
    struct ifreq request = {0};
    strcpy(request.ifr_name, device);
    if (ioctl(control, SIOCGIFFLAGS, &request) < 0)
        fail("SIOCGIFFLAGS");
    request.ifr_flags |= IFF_UP | IFF_RUNNING;
    if (ioctl(control, SIOCSIFFLAGS, &request) < 0)
        fail("SIOCSIFFLAGS");
}

static void set_address(int control, unsigned long which, const char *address)
{
    struct ifreq request = {0};
    strcpy(request.ifr_name, DEVICE);
    struct sockaddr_in *place = (struct sockaddr_in *)&request.ifr_addr;
    place->sin_family = AF_INET;
    inet_pton(AF_INET, address, &place->sin_addr);
    if (ioctl(control, which, &request) < 0)
        fail("address");
}

/* Moves the process into a namespace of its own, which outlives the next move by its descriptor. */
static struct end make_end(const char *address, const char *peer)
{
    if (unshare(CLONE_NEWNET) < 0)
        fail("unshare");
    struct end end;
    end.name_space = open("/proc/self/ns/net", O_RDONLY);
    end.tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (end.name_space < 0 || end.tun < 0)
        fail("open");
    struct ifreq request = {0};
    strcpy(request.ifr_name, DEVICE);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    if (ioctl(end.tun, TUNSETIFF, &request) < 0)
        fail("TUNSETIFF");
    int control = socket(AF_INET, SOCK_DGRAM, 0);
    if (control < 0)
        fail("socket");
    set_address(control, SIOCSIFADDR, address);
    set_address(control, SIOCSIFDSTADDR, peer);
    set_address(control, SIOCSIFNETMASK, "255.255.255.255");
    request.ifr_qlen = TX_QUEUE_LENGTH;
    if (ioctl(control, SIOCSIFTXQLEN, &request) < 0)
        fail("SIOCSIFTXQLEN");
    set_up(control, "lo");
    set_up(control, DEVICE);
    close(control);
    return end;
}

static struct direction make_direction(int source, int target)
{
    struct direction direction = {source, target, NULL, 0, 0};
    direction.ring = calloc(QUEUE_LENGTH, sizeof(struct packet));
    if (!direction.ring)
        fail("memory");
    return direction;
}

/* Delivers what has arrived; returns when the next packet does, or `latest` if that is sooner. */
static int64_t deliver(struct direction *direction, int64_t latest)
{
    while (direction->first != direction->end) {
        struct packet *packet = &direction->ring[direction->first % QUEUE_LENGTH];
        if (packet->due_ns > now_ns())
            return packet->due_ns < latest ? packet->due_ns : latest;
        /* A namespace that takes no more loses the packet, as any network would. */
        ssize_t written = write(direction->target, packet->bytes, packet->size);
        (void)written;
        direction->first++;
    }
    return latest;
}

static void collect(struct direction *direction, int64_t delay_ns)
{
    for (int count = 0; count < BATCH_LENGTH; count++) {
        if (direction->end - direction->first == QUEUE_LENGTH)
            return;
        struct packet *packet = &direction->ring[direction->end % QUEUE_LENGTH];
        packet->size = read(direction->source, packet->bytes, PACKET_SIZE);
        if (packet->size <= 0)
            return;
        packet->due_ns = now_ns() + delay_ns;
        direction->end++;
    }
}

int main(int count, char **arguments)
{
    if (count != 2)
        return 2;
    int64_t delay_ns = atoll(arguments[1]) * 1000;
    prctl(PR_SET_TIMERSLACK, 1000);
    struct end near = make_end("10.86.0.1", "10.86.0.2");
    struct end far = make_end("10.86.0.2", "10.86.0.1");
    struct direction onward = make_direction(near.tun, far.tun);
    struct direction back = make_direction(far.tun, near.tun);
    printf("%d %d\n", near.name_space, far.name_space);
    fflush(stdout);
    for (;;) {
        int64_t wake_ns = now_ns() + SECOND_NS;
        wake_ns = deliver(&onward, wake_ns);
        wake_ns = deliver(&back, wake_ns);
        int64_t wait_ns = wake_ns - now_ns();
        if (wait_ns < 0)
            wait_ns = 0;
        struct timespec wait = {wait_ns / SECOND_NS, wait_ns % SECOND_NS};
        struct pollfd watched[] = {
            {near.tun, POLLIN, 0}, {far.tun, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}
        };
        if (ppoll(watched, 3, &wait, NULL) < 0)
            continue;
        if (watched[2].revents)
            return 0;
        if (watched[0].revents)
            collect(&onward, delay_ns);
        if (watched[1].revents)
            collect(&back, delay_ns);
    }
}
