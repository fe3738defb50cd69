/* roomload - rooms full of WebSocket subscribers, and publishers to them, on one Linux machine: one thread, epoll.
 *
 *   cc -O2 -o roomload roomload.c
 *   ./roomload HOST PORT[,PORT...] PATH -c SUBSCRIBERS -r ROOMS -p PUBLISHERS -w WINDOW -s SIZE -d SECONDS [-u WARMUP]
 *              [-R RATE] [-q SECONDS] [-e]
 *
 * SUBSCRIBERS connections are spread evenly over ROOMS, and those of a room over the PORTs. PUBLISHERS more connections
 * are spread in the same way. Each asks for PATH with topic=room-N in its query, a publisher with publish=1 besides.
 * A server tells each by a first text message, "ready PROCESS", that it is subscribed, and sends each text that comes from
 * a publisher to all subscribers of the topic. PROCESS is any name of the server's process: processes tells how many
 * subscribers each name has.
 *
 * Every publisher keeps WINDOW messages of SIZE bytes in flight (1 to 64); one is in flight until every subscriber of the
 * room has got it. With -R RATE, that many are published a second by all together, evenly in time, whatever is in flight:
 * a message that must wait, as 64 of its publisher are on their way, is timed from when it was due, and counted as late.
 * Latencies are from publish to each receipt. Each message has its publisher and its number in it, and each subscriber must
 * get each one once, unaltered: missing, twice and altered tell what was not so, also of the warm-up. A message that
 * overtakes another of the same publisher is counted as out_of_order, and is no fault.
 *
 * -q SECONDS: it gives up when nothing is delivered for so long, though something is owed (5 without this).
 * -e speaks Socket.IO over Engine.IO: the events "ready", "publish" and "message", with one string each.
 * HOST is an IPv4 address of the loopback range. Prints a line for each phase as it begins (opened, measuring, measured),
 * then one JSON object. Exit status 0 where every subscriber got everything and no connection was lost, 1 otherwise, 2 for
 * bad arguments.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTING, HANDSHAKE, GREETING, OPEN, DEAD };
enum { RING = 64, PORTS = 64, PROCESSES = 64 };
#define OPENING 60000000ULL     /* us for all connections to open */
#define SETTLING 500000ULL      /* us before the first message: not every server waits until a subscription is in force */
#define STRAGGLING 200000ULL    /* us after the last delivery in which one may come twice */

typedef struct { uint64_t below, above; } Got;  /* all numbers below have been got, and below + 1 + i where bit i is set */

typedef struct {
    int fd, state, room, publisher;     /* publisher: its number, -1 for a subscriber */
    uint32_t events;
    uint8_t *in, *out;
    size_t in_len, in_cap, out_len, out_cap;
    Got *got;                           /* of a subscriber: by publisher of its room */
} Conn;

typedef struct {
    Conn *conn;
    uint64_t oldest, next;              /* numbers in flight: oldest <= n < next */
    uint64_t at[RING];
    int owed[RING];                     /* subscribers that have yet to get it */
    int dirty;
} Publisher;

static int subscribers = 400, rooms = 1, publishers = 4, window = 16, size = 125, seconds = 3, warmup = 1, rate = 0, socketio = 0;
static uint64_t stalling = 5000000;     /* us without a delivery, though some are owed */
static const char *host, *path, *key = "dGhlIHNhbXBsZSBub25jZQ==", *accept_key = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
static int ports[PORTS], n_ports, ep, pending, measuring, *members;
static Publisher *all_publishers;
static uint64_t opened, failed, lost, twice, altered, out_of_order, late, strange, deliveries, publishes, last_delivery, owed;
static char filler[65536];
static char process_names[PROCESSES][32];
static int process_counts[PROCESSES], processes;
#define BUCKETS 10000000        /* 1 us each: 10 s */
static uint32_t *hist;
static uint64_t hist_n, hist_max;
static uint8_t inbuf[1 << 18];

static const char before[] = "42[\"publish\",\"", before_message[] = "42[\"message\",\"", before_ready[] = "42[\"ready\",\"", after[] = "\"]";

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static uint64_t percentile(double p) {
    uint64_t want = (uint64_t)(hist_n * p), seen = 0;
    for (int i = 0; i < BUCKETS; i++) if ((seen += hist[i]) > want) return i;
    return hist_max;
}

static void watch(Conn *c, uint32_t events) {
    if (c->events == events) return;
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(ep, c->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &e);
    c->events = events;
}

static void drop(Conn *c, uint64_t *why) {
    if (c->state == DEAD) return;
    if (c->state != OPEN) pending--;
    (*why)++;
    close(c->fd);
    c->state = DEAD;
}

static void flush(Conn *c) {
    while (c->state != DEAD && c->out_len) {
        ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) { watch(c, EPOLLIN | EPOLLOUT); return; }
            drop(c, &lost);
            return;
        }
        memmove(c->out, c->out + n, c->out_len -= n);
    }
    if (c->state != DEAD) watch(c, EPOLLIN);
}

/* Puts a masked frame into the connection's output; the payload comes in three parts. */
static void put_frame(Conn *c, int opcode, const char *a, size_t na, const char *b, size_t nb, const char *d, size_t nd) {
    static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    size_t n = na + nb + nd;
    if (c->out_len + n + 14 > c->out_cap) { c->out_cap = (c->out_len + n + 14) * 2; c->out = realloc(c->out, c->out_cap); }
    uint8_t *to = c->out + c->out_len, *start = to;
    *to++ = 0x80 | opcode;
    if (n < 126) *to++ = 0x80 | n;
    else if (n < 65536) { *to++ = 0x80 | 126; *to++ = n >> 8; *to++ = n & 255; }
    else { *to++ = 0x80 | 127; for (int i = 7; i >= 0; i--) *to++ = ((uint64_t)n >> (8 * i)) & 255; }
    memcpy(to, mask, 4); to += 4;
    memcpy(to, a, na); memcpy(to + na, b, nb); memcpy(to + na + nb, d, nd);
    for (size_t i = 0; i < n; i++) to[i] ^= mask[i & 3];
    c->out_len += to + n - start;
}

static void open_conn(Conn *c, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, host, &to.sin_addr);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) { perror("socket"); exit(1); }
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->state = CONNECTING;
    pending++;
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) { drop(c, &failed); return; }
    watch(c, EPOLLOUT);
}

static void ask(Conn *c) {
    char request[1024];
    int err = 0;
    socklen_t l = sizeof err;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &err, &l);
    if (err) { drop(c, &failed); return; }
    int n = snprintf(request, sizeof request,
        "GET %s%ctopic=room-%d%s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nOrigin: http://%s\r\n"
        "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n", path, strchr(path, '?') ? '&' : '?', c->room,
        c->publisher < 0 ? "" : "&publish=1", host, host, key);
    if (send(c->fd, request, n, MSG_NOSIGNAL) != n) { drop(c, &failed); return; }
    c->state = HANDSHAKE;
    watch(c, EPOLLIN);
}

static void publish(Publisher *p, uint64_t at) {
    static char message[65536 + 32];
    int slot = p->next % RING;
    p->owed[slot] = members[p->conn->room];
    owed += p->owed[slot];
    p->at[slot] = at;
    snprintf(message, sizeof message, "%06x %012lx ", p->conn->publisher, p->next++);
    memcpy(message + 20, filler, size - 20);
    if (socketio) put_frame(p->conn, 1, before, sizeof before - 1, message, size, after, sizeof after - 1);
    else put_frame(p->conn, 1, message, size, "", 0, "", 0);
    if (measuring) publishes++;
}

static void fill_window(Publisher *p) {
    p->dirty = 0;
    if (p->conn->state != OPEN) return;
    uint64_t now = now_us();
    while (p->next - p->oldest < (uint64_t)window) publish(p, now);
    flush(p->conn);
}

static uint64_t hex(const char *text, int n) {
    uint64_t value = 0;
    for (int i = 0; i < n; i++) {
        int digit = text[i];
        if (digit >= '0' && digit <= '9') digit -= '0';
        else if (digit >= 'a' && digit <= 'f') digit -= 'a' - 10;
        else return UINT64_MAX;
        value = value << 4 | digit;
    }
    return value;
}

static void on_delivery(Conn *c, const char *p, size_t n, uint64_t now) {
    uint64_t who, number;
    if (n != (size_t)size || (who = hex(p, 6)) >= (uint64_t)publishers || who % rooms != (uint64_t)c->room || c->publisher >= 0 ||
        (number = hex(p + 7, 12)) >= all_publishers[who].next || p[6] != ' ' || p[19] != ' ' || memcmp(p + 20, filler, n - 20)) { altered++; return; }
    Publisher *from = &all_publishers[who];
    Got *got = &c->got[who / rooms];
    if (number < got->below || (number > got->below && got->above >> (number - got->below - 1) & 1)) { twice++; return; }
    if (number == got->below) {
        got->below++;
        while (got->above & 1) { got->above >>= 1; got->below++; }
        got->above >>= 1;
    } else { got->above |= 1ULL << (number - got->below - 1); out_of_order++; }
    int slot = number % RING;
    owed--;
    last_delivery = now;
    if (measuring) {
        uint64_t us = now - from->at[slot];
        hist[us < BUCKETS ? us : BUCKETS - 1]++;
        hist_n++;
        if (us > hist_max) hist_max = us;
        deliveries++;
    }
    if (--from->owed[slot]) return;
    while (from->oldest < from->next && !from->owed[from->oldest % RING]) from->oldest++;
    from->dirty = 1;
}

static void on_ready(Conn *c, const char *p, size_t n) {
    c->state = OPEN;
    opened++; pending--;
    if (c->publisher >= 0) return;
    char name[32];
    snprintf(name, sizeof name, "%.*s", (int)n, p);
    int i = 0;
    while (i < processes && strcmp(process_names[i], name)) i++;
    if (i == PROCESSES) return;
    if (i == processes) strcpy(process_names[processes++], name);
    process_counts[i]++;
}

/* A text without what a Socket.IO event puts around it; NULL where it is no such event. */
static const char *bare(const char *p, size_t *n, const char *event) {
    size_t around = strlen(event) + sizeof after - 1;
    if (*n < around || memcmp(p, event, strlen(event)) || memcmp(p + *n - (sizeof after - 1), after, sizeof after - 1)) return NULL;
    *n -= around;
    return p + strlen(event);
}

static void on_text(Conn *c, const char *p, size_t n, uint64_t now) {
    if (socketio) {
        const char *inner;
        size_t length = n;
        if (n == 1 && *p == '2') { put_frame(c, 1, "3", 1, "", 0, "", 0); flush(c); }
        else if (n && *p == '0') { put_frame(c, 1, "40", 2, "", 0, "", 0); flush(c); }
        else if (n > 1 && !memcmp(p, "40", 2)) return;
        else if (c->state == GREETING && (inner = bare(p, &length, before_ready))) on_ready(c, inner, length);
        else if (c->state == OPEN && (inner = bare(p, &length, before_message))) on_delivery(c, inner, length, now);
        else strange++;
    }
    else if (c->state == OPEN) on_delivery(c, p, n, now);
    else if (n > 6 && !memcmp(p, "ready ", 6)) on_ready(c, p + 6, n - 6);
    else strange++;
}

/* Consumes whole frames out of p; gives the number of bytes used. */
static size_t parse(Conn *c, const uint8_t *p, size_t n, uint64_t now) {
    size_t used = 0;
    while (c->state == OPEN || c->state == GREETING) {
        if (n - used < 2) break;
        const uint8_t *q = p + used;
        size_t h = 2;
        uint64_t len = q[1] & 127;
        if (len == 126) { if (n - used < 4) break; len = q[2] << 8 | q[3]; h = 4; }
        else if (len == 127) { if (n - used < 10) break; len = 0; for (int i = 2; i < 10; i++) len = len << 8 | q[i]; h = 10; }
        if (n - used < h + len) break;
        used += h + len;
        if (q[0] == 0x81) on_text(c, (const char *)q + h, len, now);
        else if (q[0] == 0x89) { put_frame(c, 10, (const char *)q + h, len, "", 0, "", 0); flush(c); }
        else if (q[0] == 0x88) { drop(c, c->state == OPEN ? &lost : &failed); break; }
        else strange++;
    }
    return used;
}

static void on_readable(Conn *c) {
    ssize_t n = recv(c->fd, inbuf, sizeof inbuf, 0);
    if (n <= 0) {
        if (n < 0 && errno == EAGAIN) return;
        drop(c, c->state == OPEN ? &lost : &failed);
        return;
    }
    const uint8_t *p = inbuf;
    size_t len = n, used = 0;
    if (c->in_len) {
        if (c->in_len + n > c->in_cap) { c->in_cap = (c->in_len + n) * 2; c->in = realloc(c->in, c->in_cap); }
        memcpy(c->in + c->in_len, inbuf, n);
        p = c->in; len = c->in_len + n;
    }
    if (c->state == HANDSHAKE) {
        const uint8_t *end = memmem(p, len, "\r\n\r\n", 4);
        if (end) {
            used = end + 4 - p;
            if (len < 12 || memcmp(p, "HTTP/1.1 101", 12) || !memmem(p, used, accept_key, strlen(accept_key))) {
                fprintf(stderr, "refused: %.*s\n", (int)(len < 200 ? len : 200), p);
                drop(c, &failed);
                return;
            }
            c->state = GREETING;
        }
    }
    used += parse(c, p + used, len - used, now_us());
    if (c->state == DEAD) return;
    size_t left = len - used;
    if (left > c->in_cap) { c->in_cap = left * 2; uint8_t *b = malloc(c->in_cap); memcpy(b, p + used, left); free(c->in); c->in = b; }
    else if (left) memmove(c->in, p + used, left);
    c->in_len = left;
}

static void turn(int ms) {
    static struct epoll_event ev[1024];
    int n = epoll_wait(ep, ev, 1024, ms);
    for (int i = 0; i < n; i++) {
        Conn *c = ev[i].data.ptr;
        if (c->state == CONNECTING) ask(c);
        else if (c->state != DEAD && ev[i].events & EPOLLOUT) flush(c);
        if (c->state != DEAD && ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(c);
    }
}

static void phase(const char *name) { printf("%s\n", name); fflush(stdout); }

int main(int argc, char **argv) {
    if (argc < 4) { fprintf(stderr, "usage: roomload HOST PORT[,PORT...] PATH [-c N] [-r N] [-p N] [-w N] [-s N] [-d S] [-u S] [-R RATE] [-q S] [-e]\n"); return 2; }
    host = argv[1]; path = argv[3];
    for (char *p = strtok(argv[2], ","); p && n_ports < PORTS; p = strtok(NULL, ",")) ports[n_ports++] = atoi(p);
    optind = 4;
    for (int o; (o = getopt(argc, argv, "c:r:p:w:s:d:u:R:q:e")) != -1;) switch (o) {
        case 'c': subscribers = atoi(optarg); break;
        case 'r': rooms = atoi(optarg); break;
        case 'p': publishers = atoi(optarg); break;
        case 'w': window = atoi(optarg); break;
        case 's': size = atoi(optarg); break;
        case 'd': seconds = atoi(optarg); break;
        case 'u': warmup = atoi(optarg); break;
        case 'R': rate = atoi(optarg); break;
        case 'q': stalling = atoi(optarg) * 1000000ULL; break;
        case 'e': socketio = 1; break;
        default: return 2;
    }
    if (strncmp(host, "127.", 4) || !n_ports) { fprintf(stderr, "roomload: a loopback address and a port, please\n"); return 2; }
    if (rooms < 1 || subscribers < rooms || publishers < 1 || window < 1 || window > RING || size < 20 || size > 65536 || seconds < 1 || warmup < 0 || rate < 0) {
        fprintf(stderr, "roomload: a number is too small or too large\n");
        return 2;
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    hist = calloc(BUCKETS, sizeof *hist);
    for (int i = 0; i < size; i++) filler[i] = 'a' + i % 26;
    int total = subscribers + publishers, started = 0, slots = (publishers + rooms - 1) / rooms;
    Conn *all = calloc(total, sizeof *all);
    members = calloc(rooms, sizeof *members);
    all_publishers = calloc(publishers, sizeof *all_publishers);
    for (int i = 0; i < total; i++) {
        int subscriber = i < subscribers;
        all[i].publisher = subscriber ? -1 : i - subscribers;
        all[i].room = (subscriber ? i : i - subscribers) % rooms;
        all[i].state = DEAD;
        if (subscriber) { members[all[i].room]++; all[i].got = calloc(slots, sizeof(Got)); }
        else all_publishers[i - subscribers].conn = &all[i];
    }
    ep = epoll_create1(0);
    uint64_t t0 = now_us();
    while ((started < total || pending) && !failed && !lost && now_us() - t0 < OPENING) {
        while (started < total && pending < 32) {
            int nth = started < subscribers ? started : started - subscribers;
            /* A room's connections go to the ports in turn, and each room begins with another port. */
            open_conn(&all[started++], ports[(nth / rooms + nth % rooms) % n_ports]);
        }
        turn(10);
    }
    failed += pending;
    if (failed || lost) { fprintf(stderr, "roomload: %lu of %d connections were opened\n", opened, total); return 1; }
    phase("opened");
    for (uint64_t end = now_us() + SETTLING; now_us() < end;) turn(10);

    uint64_t start = now_us(), warm_end = start + (uint64_t)warmup * 1000000, end = warm_end + (uint64_t)seconds * 1000000, due = 0, now;
    struct rusage r0 = {0}, r1;
    int stalled = 0, waits = 0;
    last_delivery = start;
    if (!rate) for (int i = 0; i < publishers; i++) fill_window(&all_publishers[i]);
    while ((now = now_us()) < end && !lost) {
        if (!measuring && now >= warm_end) { measuring = 1; start = now; getrusage(RUSAGE_SELF, &r0); phase("measuring"); }
        if (owed && now - last_delivery > stalling) { stalled = 1; break; }
        if (!rate) {
            turn(20);
            for (int i = 0; i < publishers; i++) if (all_publishers[i].dirty) fill_window(&all_publishers[i]);
            continue;
        }
        uint64_t next;
        while ((next = warm_end - (uint64_t)warmup * 1000000 + due * 1000000 / rate) <= now) {
            Publisher *p = &all_publishers[due % publishers];
            if (p->next - p->oldest == RING) { waits = 1; break; }
            if (!owed) last_delivery = now;
            late += waits;
            publish(p, waits ? next : now);
            flush(p->conn);
            due++; waits = 0;
        }
        /* epoll counts in milliseconds: what is due sooner is waited for by turning. */
        turn(next > now + 1000 ? 1 : 0);
    }
    uint64_t took = now_us() - start;
    getrusage(RUSAGE_SELF, &r1);
    measuring = 0;
    phase("measured");
    now = now_us();
    if (last_delivery < now) last_delivery = now;
    while (owed && !lost && !stalled && now_us() - last_delivery < stalling) turn(20);
    for (end = now_us() + STRAGGLING; now_us() < end;) turn(20);

    double cpu = (r1.ru_utime.tv_sec - r0.ru_utime.tv_sec) + (r1.ru_utime.tv_usec - r0.ru_utime.tv_usec) / 1e6
               + (r1.ru_stime.tv_sec - r0.ru_stime.tv_sec) + (r1.ru_stime.tv_usec - r0.ru_stime.tv_usec) / 1e6, s = took / 1e6;
    printf("{\"subscribers\": %d, \"rooms\": %d, \"publishers\": %d, \"window\": %d, \"rate\": %d, \"size\": %d, \"opened\": %lu, "
           "\"seconds\": %.3f, \"publishes\": %lu, \"deliveries\": %lu, \"publishes_per_s\": %.1f, \"deliveries_per_s\": %.1f, "
           "\"p50_us\": %lu, \"p99_us\": %lu, \"p999_us\": %lu, \"max_us\": %lu, \"lost\": %lu, \"missing\": %lu, \"twice\": %lu, "
           "\"altered\": %lu, \"strange\": %lu, \"stalled\": %d, \"out_of_order\": %lu, \"late\": %lu, \"client_cpu\": %.2f, \"processes\": {",
           subscribers, rooms, publishers, window, rate, size, opened, s, publishes, deliveries, publishes / s, deliveries / s,
           percentile(.5), percentile(.99), percentile(.999), hist_max, lost, owed, twice, altered, strange, stalled, out_of_order, late, cpu / s);
    for (int i = 0; i < processes; i++) printf("%s\"%s\": %d", i ? ", " : "", process_names[i], process_counts[i]);
    printf("}}\n");
    return lost || owed || twice || altered || strange || stalled;
}
