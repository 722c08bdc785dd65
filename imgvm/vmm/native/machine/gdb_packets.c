/* SPDX-License-Identifier: MIT */
/* What gdb asks for, packet by packet (gdb's manual, "Remote Protocol"). An empty answer means: not known here. */
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../base/bits.h"
#include "gdb_internal.h"

static const char digits[] = "0123456789abcdef";

struct answer {
    char data[2 * GDB_PACKET_BYTES];
    size_t size;
};

static void put(struct answer *answer, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct answer *answer, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    size_t room = sizeof answer->data - answer->size;
    int n = vsnprintf(answer->data + answer->size, room, format, args);
    va_end(args);
    answer->size += n > 0 ? MIN((size_t)n, room - 1) : 0;
}

static void put_hex(struct answer *answer, const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count && answer->size + 2 < sizeof answer->data; i++) {
        answer->data[answer->size++] = digits[bytes[i] >> 4];
        answer->data[answer->size++] = digits[bytes[i] & 15];
    }
}

static int digit(char c)
{
    const char *at = c ? strchr(digits, c | 0x20) : NULL;
    return at ? (int)(at - digits) : -1;
}

static size_t take_hex(const char **text, uint8_t *bytes, size_t room)
{
    size_t count = 0;
    while (count < room && digit((*text)[0]) >= 0 && digit((*text)[1]) >= 0) {
        bytes[count++] = (uint8_t)(digit((*text)[0]) << 4 | digit((*text)[1]));
        *text += 2;
    }
    return count;
}

static bool take_number(const char **text, char separator, uint64_t *value)
{
    char *end;
    if (digit(**text) < 0)
        return false;
    *value = strtoull(*text, &end, 16);
    *text = end;
    if (!separator)
        return true;
    if (*end != separator)
        return false;
    (*text)++;
    return true;
}

static bool starts(const char *text, const char *with)
{
    return !strncmp(text, with, strlen(with));
}

static bool get_state(struct gdb *gdb, struct x86_state *state)
{
    struct engine *engine = gdb->vm->board.engine;
    return engine->ops->get_state(engine, gdb->cpu, state, NULL) == 0;
}

static bool set_state(struct gdb *gdb, const struct x86_state *state)
{
    struct engine *engine = gdb->vm->board.engine;
    return engine->ops->set_state(engine, gdb->cpu, state, NULL) == 0;
}

/* ---- why it stands ---- */

static bool same_point(const struct engine_point *a, const struct engine_point *b)
{
    return a->linear == b->linear && a->size == b->size && a->kinds == b->kinds;
}

static const struct gdb_point *point_of(const struct gdb *gdb, const struct engine_point *met)
{
    for (unsigned i = 0; i < gdb->point_count; i++)
        if (same_point(&gdb->points[i].point, met))
            return &gdb->points[i];
    return NULL;
}

void gdb_report_stop(struct gdb *gdb)
{
    static const char *const kinds[] = {"swbreak", "hwbreak", "watch", "rwatch", "awatch"};
    struct engine *engine = gdb->vm->board.engine;
    struct answer answer = {.size = 0};
    bool asked = gdb->reply_due && !gdb->stop_is_point;
    put(&answer, "T%02xthread:%x;", asked ? GDB_SIGNAL_INT : GDB_SIGNAL_TRAP, gdb->stop_cpu + 1);
    if (gdb->stop_is_point) {
        struct engine_stop stop = engine->ops->stop_of(engine, gdb->stop_cpu);
        const struct gdb_point *point = stop.reason == ENGINE_STOP_POINT ? point_of(gdb, &stop.point) : NULL;
        if (point && point->type <= 1)
            put(&answer, "%s:;", kinds[point->type]);
        else if (point)
            put(&answer, "%s:%" PRIx64 ";", kinds[point->type], stop.linear);
    }
    gdb->reply_due = false;
    gdb_send(gdb, answer.data, answer.size);
}

/* ---- registers ---- */

static unsigned description_bits(struct gdb *gdb)
{
    struct x86_state state;
    if (!gdb->bits)
        gdb->bits = gdb->forced_bits            ? gdb->forced_bits
                    : !get_state(gdb, &state)   ? 64
                    : state.efer & EFER_LMA     ? 64 : register_code_bits(&state);
    return gdb->bits;
}

struct listing {
    struct gdb_register row[GDB_REGISTERS_MAX];
    unsigned end; /* of those asked for */
    struct x86_state state;
};

/* false: there are none, which has been answered. */
static bool list_registers(struct gdb *gdb, struct answer *answer, unsigned first, unsigned count, struct listing *list)
{
    unsigned all = gdb_registers(description_bits(gdb), list->row);
    if (first >= all || !get_state(gdb, &list->state)) {
        put(answer, "E01");
        return false;
    }
    list->end = first + MIN(count, all - first);
    return true;
}

static void read_registers(struct gdb *gdb, struct answer *answer, unsigned first, unsigned count)
{
    struct listing list;
    if (!list_registers(gdb, answer, first, count, &list))
        return;
    for (unsigned i = first; i < list.end; i++) {
        uint8_t value[REGISTER_BYTES_MAX] = {0};
        register_read(&list.state, list.row[i].row, value);
        put_hex(answer, value, list.row[i].bytes);
    }
}

static void write_registers(struct gdb *gdb, struct answer *answer, unsigned first, unsigned count, const char *hex)
{
    struct listing list;
    if (!list_registers(gdb, answer, first, count, &list))
        return;
    for (unsigned i = first; i < list.end; i++) {
        uint8_t before[REGISTER_BYTES_MAX] = {0}, value[REGISTER_BYTES_MAX] = {0};
        if (take_hex(&hex, value, list.row[i].bytes) != list.row[i].bytes)
            break;
        register_read(&list.state, list.row[i].row, before);
        if (memcmp(before, value, list.row[i].bytes)) /* what a short view hides stays, and so do segments' bases */
            register_write(&list.state, list.row[i].row, value);
    }
    put(answer, set_state(gdb, &list.state) ? "OK" : "E02");
}

/* ---- memory ---- */

static struct inspect memory_of(const struct gdb *gdb)
{
    return (struct inspect){gdb->vm->board.engine, &gdb->vm->board.mem, gdb->cpu, gdb->physical};
}

static void read_memory(struct gdb *gdb, struct answer *answer, const char *text, bool binary)
{
    uint64_t address, size;
    uint8_t data[GDB_PACKET_BYTES / 2];
    struct inspect inspect = memory_of(gdb);
    if (!take_number(&text, ',', &address) || !take_number(&text, 0, &size)) {
        put(answer, "E01");
        return;
    }
    uint64_t done = inspect_read(&inspect, address, data, MIN(size, sizeof data));
    if (!done && size) {
        put(answer, "E0e");
    } else if (!binary) {
        put_hex(answer, data, done);
    } else {
        answer->data[answer->size++] = 'b';
        for (uint64_t i = 0; i < done; i++) {
            if (strchr("$#}*", data[i]) && data[i])
                answer->data[answer->size++] = '}', data[i] ^= 0x20;
            answer->data[answer->size++] = (char)data[i];
        }
    }
}

static void write_memory(struct gdb *gdb, struct answer *answer, const char *text, const char *end, bool binary)
{
    uint64_t address, size;
    uint8_t data[GDB_PACKET_BYTES];
    struct inspect inspect = memory_of(gdb);
    if (!take_number(&text, ',', &address) || !take_number(&text, ':', &size) || size > sizeof data) {
        put(answer, "E01");
        return;
    }
    size_t have = 0;
    if (!binary)
        have = take_hex(&text, data, size);
    else
        while (text < end && have < size) {
            uint8_t byte = (uint8_t)*text++;
            data[have++] = byte == '}' && text < end ? (uint8_t)*text++ ^ 0x20 : byte;
        }
    put(answer, have != size ? "E01" : inspect_write(&inspect, address, data, size) == size ? "OK" : "E0e");
}

/* ---- break- and watchpoints ---- */

static void change_point(struct gdb *gdb, struct answer *answer, const char *text)
{
    static const uint32_t kinds[] = {ENGINE_POINT_EXECUTE, ENGINE_POINT_EXECUTE, ENGINE_POINT_WRITE, ENGINE_POINT_READ,
                                     ENGINE_POINT_READ | ENGINE_POINT_WRITE};
    bool insert = text[0] == 'Z';
    unsigned type = (unsigned)(text[1] - '0');
    uint64_t address, size;
    if (type >= ARRAY_LEN(kinds))
        return;
    text += 2;
    if (*text++ != ',' || !take_number(&text, ',', &address) || !take_number(&text, 0, &size)) {
        put(answer, "E01");
        return;
    }
    struct gdb_point point = {{address, type <= 1 || !size ? 1 : size, kinds[type]}, type};
    unsigned at = 0;
    while (at < gdb->point_count &&
           (gdb->points[at].type != type || !same_point(&gdb->points[at].point, &point.point)))
        at++;
    bool there = at < gdb->point_count;
    if (insert && !there) {
        if (gdb->point_count == GDB_POINTS_MAX) {
            put(answer, "E1c");
            return;
        }
        gdb->points[gdb->point_count++] = point;
    } else if (!insert && there) {
        gdb->points[at] = gdb->points[--gdb->point_count];
    }
    if (gdb_apply_points(gdb) == 0) {
        put(answer, "OK");
        return;
    }
    if (insert && !there) {
        gdb->point_count--;
        gdb_apply_points(gdb);
    }
    put(answer, "E1c"); /* no room: KVM has four debug registers */
}

/* ---- threads ---- */

/* -1 and 0: `any`; else the processor. A thread that is none counts as the last. */
static unsigned take_thread(struct gdb *gdb, const char **text, unsigned any)
{
    uint64_t id = 0;
    if (**text == '-') {
        *text += (*text)[1] ? 2 : 1;
        return any;
    }
    if (!take_number(text, 0, &id) || !id)
        return any;
    return (unsigned)MIN(id - 1, (uint64_t)gdb->vm->board.cpus - 1);
}

static void list_threads(struct gdb *gdb, struct answer *answer)
{
    put(answer, "m");
    for (unsigned i = 0; i < gdb->vm->board.cpus; i++)
        put(answer, "%s%x", i ? "," : "", i + 1);
}

static const char *activity_of(struct gdb *gdb, unsigned cpu)
{
    static const char *const words[] = {"running", "halted", "waiting to be started", "shut down"};
    struct engine *engine = gdb->vm->board.engine;
    struct x86_state state;
    return engine->ops->get_state(engine, cpu, &state, NULL) < 0 ? "unknown" : words[state.activity];
}

/* ---- going ---- */

static void go_on(struct gdb *gdb, const enum gdb_go *go)
{
    gdb->reply_due = true;
    gdb_resume(gdb, go);
}

/* c and s: what Hc chose. */
static void go_plainly(struct gdb *gdb, enum gdb_go how)
{
    enum gdb_go go[ENGINE_CPUS_MAX];
    for (unsigned i = 0; i < ENGINE_CPUS_MAX; i++)
        go[i] = how == GDB_STEP && gdb->continue_cpu == UINT_MAX ? (i == gdb->cpu ? GDB_STEP : GDB_CONTINUE)
                : gdb->continue_cpu == UINT_MAX || gdb->continue_cpu == i ? how : GDB_HOLD;
    go_on(gdb, go);
}

/* vCont;action[:thread]...: the first action that names a thread is its. */
static bool go_by_threads(struct gdb *gdb, const char *text)
{
    enum gdb_go go[ENGINE_CPUS_MAX] = {GDB_HOLD};
    bool named[ENGINE_CPUS_MAX] = {false}, any = false;
    while (*text++ == ';') {
        char action = *text;
        if (!action || !strchr("cCsS", action))
            return false;
        text++;
        if (action == 'C' || action == 'S')
            text += strspn(text, digits); /* the signal means nothing here */
        unsigned cpu = UINT_MAX;
        if (*text == ':') {
            text++;
            cpu = take_thread(gdb, &text, UINT_MAX);
        }
        for (unsigned i = 0; i < gdb->vm->board.cpus; i++)
            if (!named[i] && (cpu == UINT_MAX || cpu == i)) {
                named[i] = any = true;
                go[i] = action == 's' || action == 'S' ? GDB_STEP : GDB_CONTINUE;
            }
    }
    if (any)
        go_on(gdb, go);
    return any;
}

/* ---- queries ---- */

static void send_part(struct answer *answer, const char *whole, size_t size, const char *range)
{
    uint64_t offset, length;
    if (!take_number(&range, ',', &offset) || !take_number(&range, 0, &length)) {
        put(answer, "E01");
        return;
    }
    length = MIN(length, (uint64_t)GDB_PACKET_BYTES - 8);
    if (offset >= size) {
        put(answer, "l");
        return;
    }
    put(answer, "%c%.*s", offset + length < size ? 'm' : 'l', (int)MIN(length, size - offset), whole + offset);
}

static void describe_threads(struct gdb *gdb, struct answer *answer, const char *range)
{
    struct answer xml = {.size = 0};
    put(&xml, "<?xml version=\"1.0\"?><threads>");
    for (unsigned i = 0; i < gdb->vm->board.cpus; i++)
        put(&xml, "<thread id=\"%x\" core=\"%u\" name=\"processor %u\">%s</thread>", i + 1, i, i, activity_of(gdb, i));
    put(&xml, "</threads>");
    send_part(answer, xml.data, xml.size, range);
}

static void query(struct gdb *gdb, struct answer *answer, const char *text)
{
    if (starts(text, "qSupported")) {
        put(answer, "PacketSize=%x;qXfer:features:read+;qXfer:threads:read+;QStartNoAckMode+;swbreak+;hwbreak+;"
                    "vContSupported+;binary-upload+", GDB_PACKET_BYTES);
    } else if (starts(text, "qXfer:features:read:target.xml:")) {
        static const size_t size = 32768;
        char *xml = malloc(size);
        if (xml)
            send_part(answer, xml, MIN(gdb_describe(description_bits(gdb), xml, size), size - 1), strrchr(text, ':') + 1);
        free(xml);
    } else if (starts(text, "qXfer:threads:read::")) {
        describe_threads(gdb, answer, strrchr(text, ':') + 1);
    } else if (!strcmp(text, "QStartNoAckMode")) {
        gdb_send_text(gdb, "OK");
        gdb->no_ack = true;
    } else if (!strcmp(text, "qC")) {
        put(answer, "QC%x", gdb->cpu + 1);
    } else if (!strcmp(text, "qfThreadInfo")) {
        list_threads(gdb, answer);
    } else if (!strcmp(text, "qsThreadInfo")) {
        put(answer, "l");
    } else if (starts(text, "qThreadExtraInfo,")) {
        text += strlen("qThreadExtraInfo,");
        const char *words = activity_of(gdb, take_thread(gdb, &text, 0));
        put_hex(answer, (const uint8_t *)words, strlen(words));
    } else if (starts(text, "qAttached")) {
        put(answer, "1"); /* so that gdb, when it leaves, detaches and does not kill */
    } else if (starts(text, "qRcmd,")) {
        char command[256] = "";
        text += strlen("qRcmd,");
        command[take_hex(&text, (uint8_t *)command, sizeof command - 1)] = 0;
        gdb_monitor(gdb, command);
    } else if (!strcmp(text, "qqemu.PhyMemMode")) {
        put(answer, "%d", gdb->physical);
    } else if (starts(text, "Qqemu.PhyMemMode:")) {
        gdb->physical = text[strlen("Qqemu.PhyMemMode:")] == '1';
        put(answer, "OK");
    }
}

/* true: it has been answered, or will be. */
static bool is_answered(struct gdb *gdb, const char *packet)
{
    return !strcmp(packet, "QStartNoAckMode") || starts(packet, "qRcmd,") || gdb->reply_due || gdb->fd < 0;
}

void gdb_packet(struct gdb *gdb, char *packet, size_t size)
{
    struct answer answer = {.size = 0};
    const char *text = packet + 1;
    uint64_t number;
    switch (packet[0]) {
    case '?':
        gdb->stop_is_point = false;
        gdb_report_stop(gdb);
        return;
    case 'g': read_registers(gdb, &answer, 0, UINT_MAX); break;
    case 'G': write_registers(gdb, &answer, 0, UINT_MAX, text); break;
    case 'p':
        if (take_number(&text, 0, &number))
            read_registers(gdb, &answer, (unsigned)MIN(number, UINT64_C(1000)), 1);
        break;
    case 'P':
        if (take_number(&text, '=', &number))
            write_registers(gdb, &answer, (unsigned)MIN(number, UINT64_C(1000)), 1, text);
        break;
    case 'm': read_memory(gdb, &answer, text, false); break;
    case 'x': read_memory(gdb, &answer, text, true); break;
    case 'M': write_memory(gdb, &answer, text, packet + size, false); break;
    case 'X': write_memory(gdb, &answer, text, packet + size, true); break;
    case 'Z':
    case 'z': change_point(gdb, &answer, packet); break;
    case 'H':
        text++;
        if (packet[1] == 'g')
            gdb->cpu = take_thread(gdb, &text, 0);
        else
            gdb->continue_cpu = take_thread(gdb, &text, UINT_MAX);
        put(&answer, "OK");
        break;
    case 'T':
        put(&answer, take_number(&text, 0, &number) && number && number <= gdb->vm->board.cpus ? "OK" : "E03");
        break;
    case 'c':
    case 'C': go_plainly(gdb, GDB_CONTINUE); break;
    case 's':
    case 'S': go_plainly(gdb, GDB_STEP); break;
    case 'v':
        if (!strcmp(packet, "vCont?"))
            put(&answer, "vCont;c;C;s;S");
        else if (starts(packet, "vCont") && !go_by_threads(gdb, packet + strlen("vCont")))
            put(&answer, "E01");
        else if (starts(packet, "vKill")) {
            gdb_send_text(gdb, "OK");
            vm_finish(gdb->vm, IMGVM_REASON_STOPPED, 0, "killed by the debugger");
            return;
        }
        break;
    case 'D':
        gdb_send_text(gdb, "OK");
        gdb->point_count = 0;
        gdb_apply_points(gdb);
        gdb_close(gdb);
        gdb_resume_all(gdb);
        return;
    case 'k':
        vm_finish(gdb->vm, IMGVM_REASON_STOPPED, 0, "killed by the debugger");
        return;
    case 'q':
    case 'Q': query(gdb, &answer, packet); break;
    }
    if (!is_answered(gdb, packet))
        gdb_send(gdb, answer.data, answer.size);
}
