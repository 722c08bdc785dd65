/* SPDX-License-Identifier: MIT */
/* The debugger's socket, its packets' frames, and stopping and going. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "gdb_internal.h"

#define INTERRUPT 0x03 /* what ctrl-C sends, outside packets */
#define SEND_TIMEOUT_MS 5000

/* ---- listening ---- */

static int listen_unix(struct gdb *gdb, const char *path, imgvm_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return error_set(err, ENAMETOOLONG, "the socket's name %s is too long", path);
    strcpy(address.sun_path, path);
    gdb->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (gdb->listen_fd < 0 || bind(gdb->listen_fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(gdb->listen_fd, 1) < 0)
        return error_set(err, errno, "cannot listen for a debugger at unix:%s: %s", path, strerror(errno));
    strcpy(gdb->unix_path, path);
    return 0;
}

static int listen_tcp(struct gdb *gdb, const char *host, const char *port, imgvm_error *err)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    int one = 1, code = EAI_SERVICE;
    if (strtoul(port, NULL, 10) <= UINT16_MAX) /* getaddrinfo takes the low 16 bits of any number */
        code = getaddrinfo(*host ? host : "127.0.0.1", port, &hints, &found);
    if (code) {
        error_set(err, EINVAL, "cannot listen for a debugger at %s:%s: %s", host, port, gai_strerror(code));
        return error_hint(err, "give HOST:PORT, PORT, or unix:PATH");
    }
    gdb->listen_fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int result = 0;
    if (gdb->listen_fd < 0 || setsockopt(gdb->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
        bind(gdb->listen_fd, found->ai_addr, found->ai_addrlen) < 0 || listen(gdb->listen_fd, 1) < 0)
        result = error_set(err, errno, "cannot listen for a debugger at %s:%s: %s", host, port, strerror(errno));
    freeaddrinfo(found);
    return result;
}

static void tell_where(const struct gdb *gdb, char *where, size_t size)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    char host[64] = "?", port[16] = "?";
    if (gdb->unix_path[0]) {
        snprintf(where, size, "%s", gdb->unix_path);
        return;
    }
    if (!getsockname(gdb->listen_fd, (struct sockaddr *)&address, &length))
        getnameinfo((struct sockaddr *)&address, length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(where, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

static int start_listening(struct gdb *gdb, const char *address, imgvm_error *err)
{
    if (!strncmp(address, "unix:", 5))
        return listen_unix(gdb, address + 5, err);
    char host[256];
    const char *colon = strrchr(address, ':');
    const char *begin = address, *end = colon ? colon : address;
    if (end > begin + 1 && *begin == '[' && end[-1] == ']') {
        begin++;
        end--;
    }
    snprintf(host, sizeof host, "%.*s", (int)(end - begin), begin);
    return listen_tcp(gdb, host, colon ? colon + 1 : address, err);
}

int gdb_create(struct imgvm_vm *vm, const char *address, struct gdb **out, char *where, size_t where_size, imgvm_error *err)
{
    struct gdb *gdb = calloc(1, sizeof *gdb);
    if (!gdb)
        return error_set(err, ENOMEM, "out of memory for a debugger");
    gdb->vm = vm;
    gdb->listen_fd = gdb->fd = -1;
    gdb->continue_cpu = UINT_MAX;
    gdb->stopping = true;
    for (unsigned i = 0; i < ENGINE_CPUS_MAX; i++)
        gdb->held[i] = true;
    int result = start_listening(gdb, address, err);
    if (result < 0) {
        gdb_destroy(gdb);
        return result;
    }
    tell_where(gdb, where, where_size);
    *out = gdb;
    return 0;
}

void gdb_destroy(struct gdb *gdb)
{
    if (!gdb)
        return;
    gdb_close(gdb);
    if (gdb->listen_fd >= 0)
        close(gdb->listen_fd);
    if (gdb->unix_path[0])
        unlink(gdb->unix_path);
    free(gdb);
}

void gdb_close(struct gdb *gdb)
{
    if (gdb->fd >= 0)
        close(gdb->fd);
    gdb->fd = -1;
    gdb->in_size = gdb->out_size = 0;
    gdb->reply_due = false;
}

static void accept_one(struct gdb *gdb)
{
    int one = 1, fd = accept4(gdb->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    if (gdb->fd >= 0) { /* one debugger at a time */
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    gdb->fd = fd;
    gdb->no_ack = gdb->physical = false;
    gdb->bits = gdb->cpu = 0;
    gdb->continue_cpu = UINT_MAX;
}

/* ---- stopping and going ---- */

static void kick_all(struct gdb *gdb)
{
    struct engine *engine = gdb->vm->board.engine;
    for (unsigned i = 0; i < gdb->vm->board.cpus; i++)
        engine->ops->kick(engine, i);
    vm_wake_loop(gdb->vm);
}

static void begin_stop(struct gdb *gdb, unsigned cpu, bool is_point)
{
    struct imgvm_vm *vm = gdb->vm;
    pthread_mutex_lock(&vm->lock);
    bool first = !gdb->stopping;
    if (first) {
        gdb->stopping = true;
        gdb->stop_cpu = cpu;
        gdb->stop_is_point = is_point;
    }
    for (unsigned i = 0; i < vm->board.cpus; i++)
        gdb->held[i] = true;
    pthread_mutex_unlock(&vm->lock);
    if (first)
        kick_all(gdb);
}

void gdb_processor_stopped(struct gdb *gdb, unsigned cpu)
{
    begin_stop(gdb, cpu, true);
}

bool gdb_holds_locked(struct gdb *gdb, unsigned cpu)
{
    if (gdb->held[cpu] && gdb->stopping)
        vm_wake_loop(gdb->vm);
    return gdb->held[cpu];
}

bool gdb_holds_time(const struct gdb *gdb)
{
    return gdb->stopped;
}

/* Have all processors been parked since begin_stop? */
static void look_whether_stopped(struct gdb *gdb)
{
    struct imgvm_vm *vm = gdb->vm;
    pthread_mutex_lock(&vm->lock);
    bool stopped = gdb->stopping && vm->parked == vm->cpu_threads;
    if (stopped)
        gdb->stopping = false;
    pthread_mutex_unlock(&vm->lock);
    if (!stopped)
        return;
    gdb->stopped = true;
    gdb->stopped_at_ns = clock_now_ns(&vm->board.clock);
    gdb->cpu = gdb->stop_cpu;
    if (gdb->reply_due)
        gdb_report_stop(gdb);
}

void gdb_resume(struct gdb *gdb, const enum gdb_go *go)
{
    struct imgvm_vm *vm = gdb->vm;
    struct engine *engine = vm->board.engine;
    for (unsigned i = 0; i < vm->board.cpus; i++) {
        struct x86_state state;
        bool asleep = !engine->ops->get_state(engine, i, &state, NULL) && state.activity != X86_RUNNING;
        /* One that sleeps steps when something wakes it; one that runs steps in quiet. */
        engine->ops->set_steps(engine, i, go[i] == GDB_STEP, go[i] != GDB_STEP ? 0 : asleep ? ENGINE_GO_WAIT : ENGINE_GO_QUIET);
    }
    pthread_mutex_lock(&vm->board.lock);
    clock_hold_back(&vm->board.clock, clock_now_ns(&vm->board.clock) - gdb->stopped_at_ns);
    pthread_mutex_unlock(&vm->board.lock);
    gdb->stopped = false;
    pthread_mutex_lock(&vm->lock);
    for (unsigned i = 0; i < vm->board.cpus; i++)
        gdb->held[i] = go[i] == GDB_HOLD;
    pthread_cond_broadcast(&vm->changed);
    pthread_mutex_unlock(&vm->lock);
}

void gdb_resume_all(struct gdb *gdb)
{
    enum gdb_go go[ENGINE_CPUS_MAX];
    for (unsigned i = 0; i < ENGINE_CPUS_MAX; i++)
        go[i] = GDB_CONTINUE;
    gdb_resume(gdb, go);
}

int gdb_apply_points(struct gdb *gdb)
{
    struct engine *engine = gdb->vm->board.engine;
    struct engine_point list[GDB_POINTS_MAX];
    for (unsigned i = 0; i < gdb->point_count; i++)
        list[i] = gdb->points[i].point;
    return engine->ops->set_points(engine, list, gdb->point_count, NULL);
}

/* ---- frames ---- */

static void write_all(struct gdb *gdb, const char *data, size_t size)
{
    while (gdb->fd >= 0 && size) {
        ssize_t done = send(gdb->fd, data, size, MSG_NOSIGNAL);
        if (done >= 0) {
            data += done;
            size -= (size_t)done;
            continue;
        }
        struct pollfd wait = {.fd = gdb->fd, .events = POLLOUT};
        if ((errno != EAGAIN && errno != EINTR) || poll(&wait, 1, SEND_TIMEOUT_MS) <= 0)
            gdb_close(gdb);
    }
}

void gdb_send(struct gdb *gdb, const char *data, size_t size)
{
    size = MIN(size, sizeof gdb->out - 4);
    uint8_t sum = 0;
    gdb->out[0] = '$';
    memcpy(gdb->out + 1, data, size);
    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + (uint8_t)data[i]);
    char tail[4];
    snprintf(tail, sizeof tail, "#%02x", sum);
    memcpy(gdb->out + 1 + size, tail, 3);
    gdb->out_size = size + 4;
    write_all(gdb, gdb->out, gdb->out_size);
}

void gdb_send_text(struct gdb *gdb, const char *text)
{
    gdb_send(gdb, text, strlen(text));
}

static int hex_digit(int c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static void drop_input(struct gdb *gdb, size_t size)
{
    gdb->in_size -= size;
    memmove(gdb->in, gdb->in + size, gdb->in_size);
}

/* A whole packet at the head of the input, or none yet. */
static bool take_packet(struct gdb *gdb)
{
    uint8_t *end = memchr(gdb->in, '#', gdb->in_size);
    if (!end || (size_t)(end - gdb->in) + 3 > gdb->in_size) {
        if (gdb->in_size == sizeof gdb->in)
            gdb_close(gdb); /* longer than was agreed */
        return false;
    }
    size_t size = (size_t)(end - gdb->in) - 1;
    uint8_t sum = 0;
    for (size_t i = 0; i < size; i++)
        sum = (uint8_t)(sum + gdb->in[1 + i]);
    bool good = hex_digit(end[1]) * 16 + hex_digit(end[2]) == sum;
    char packet[sizeof gdb->in];
    memcpy(packet, gdb->in + 1, size);
    packet[size] = 0;
    drop_input(gdb, size + 4);
    if (!gdb->no_ack)
        write_all(gdb, good ? "+" : "-", 1);
    if (good || gdb->no_ack)
        gdb_packet(gdb, packet, size);
    return true;
}

/* While the machine runs only an interrupt is expected; packets wait until it has stopped. */
static void take_input(struct gdb *gdb)
{
    while (gdb->fd >= 0 && gdb->in_size) {
        uint8_t first = gdb->in[0];
        if (first == '$') {
            if (!gdb->stopped || !take_packet(gdb))
                return;
            continue;
        }
        drop_input(gdb, 1);
        if (first == INTERRUPT && !gdb->stopped)
            begin_stop(gdb, gdb->cpu, false);
        else if (first == '-' && gdb->out_size)
            write_all(gdb, gdb->out, gdb->out_size);
    }
}

/* ---- the event loop ---- */

unsigned gdb_poll(struct gdb *gdb, struct pollfd *fds)
{
    unsigned count = 0;
    fds[count++] = (struct pollfd){.fd = gdb->listen_fd, .events = POLLIN};
    if (gdb->fd >= 0)
        fds[count++] = (struct pollfd){.fd = gdb->fd, .events = POLLIN};
    return count;
}

void gdb_serve(struct gdb *gdb, const struct pollfd *fds, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (!fds[i].revents)
            continue;
        if (fds[i].fd == gdb->listen_fd) {
            accept_one(gdb);
            if (gdb->fd >= 0 && !gdb->stopped) /* a debugger expects to find a standing target */
                begin_stop(gdb, 0, false);
        } else if (fds[i].fd == gdb->fd) {
            ssize_t got = recv(gdb->fd, gdb->in + gdb->in_size, sizeof gdb->in - gdb->in_size, 0);
            if (got > 0)
                gdb->in_size += (size_t)got;
            else if (got == 0 || (errno != EAGAIN && errno != EINTR))
                gdb_close(gdb); /* and the machine stays as it is, for the next debugger */
        }
    }
    look_whether_stopped(gdb);
    take_input(gdb);
}

void gdb_run_ended(struct gdb *gdb, const imgvm_result *result)
{
    char text[8];
    if (gdb->reply_due) {
        bool crashed = result->reason == IMGVM_REASON_TRIPLE_FAULT || result->reason == IMGVM_REASON_PANIC;
        snprintf(text, sizeof text, crashed ? "X06" : "W%02x", result->status & 0xff);
        gdb_send_text(gdb, text);
    }
    gdb_close(gdb);
}
