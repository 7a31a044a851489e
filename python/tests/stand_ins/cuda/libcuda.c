/* A stand-in for the CUDA driver, for machines that have none: what docs.nvidia.com says of the functions that weightd calls.
 *
 * It is strict. It refuses what the driver refuses, and remembers as a violation what the driver would punish later: a copy
 * that reads memory which is registered no longer, a registration that is undone while a copy reads it, a mapping that is
 * registered although others write to it or this process does. Copies are made late, by a thread for each stream, so what
 * was let go of too early is seen. Memory of the "device" is any memory of the process.
 *
 * Tests ask and set by the functions `standin_*`. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, INVALID_HANDLE = 400, ILLEGAL_ADDRESS = 700, ALREADY_REGISTERED = 712, NOT_REGISTERED = 713,
       NOT_SUPPORTED = 801 };
enum { PORTABLE = 1, READ_ONLY = 8 };
enum { MAX = 1 << 17, DEPTH = 16 };

typedef struct { char *start; size_t bytes; unsigned flags; long reading; } Range;
typedef struct Event { long recorded, done; int alive; void *context; } Event;
typedef struct Task {
    struct Task *next;
    Event *event; /* recorded, or else this is a copy: */
    long number;
    const char *from; char *to;
    size_t pitch, width, rows;
} Task;
typedef struct Stream { Task *first, *last; pthread_t thread; void *context; } Stream;
typedef struct { size_t sx, sy; unsigned skind; const void *shost; uint64_t sdev; void *sarray; size_t spitch;
                 size_t tx, ty; unsigned tkind; void *thost; uint64_t tdev; void *tarray; size_t tpitch;
                 size_t width, height; } Rectangle;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Range registered[MAX], hosts[MAX];
static long registrations, host_blocks;
static char violation[512];
static __thread int depth;
static __thread void *current[DEPTH];
static int started, owner;

/* What tests set, and what they ask. */
static struct { const char *name; long value; } words[] = {
    {"devices", 2}, {"read_only_register", 1}, {"host_page_tables", 0}, {"max_pitch", 2147483647}, {"delay_us", 0},
    {"fail_registration", 0}, {"fail_copy", 0}, {"fail_wait", 0}, {"fail_host_alloc", 0}, {"hold", 0},
    {"registered_total", 0}, {"copies", 0}, {"rectangles", 0}, {"copied_bytes", 0}, {"staged_bytes", 0},
    {"events", 0}, {"streams", 0}, {"contexts", 0}, {"pushes", 0}, {"pops", 0}, {"in_flight", 0}, {"most_in_flight", 0},
    {"registered_bytes", 0}, {"largest_registration", 0}, {"waits", 0}, {"in_flight_bytes", 0}, {"most_in_flight_bytes", 0},
    {"ended", 0},
};

static long *word(const char *name)
{
    for (size_t at = 0; at < sizeof words / sizeof *words; at++)
        if (strcmp(words[at].name, name) == 0) return &words[at].value;
    fprintf(stderr, "the stand-in has no word %s\n", name);
    abort();
}

#define W(name) (*word(#name))

static void violated(const char *what)
{
    if (!violation[0]) snprintf(violation, sizeof violation, "%s", what);
}

/* Counts down a fault that was ordered; whether it is due. */
static int due(long *fault) { return *fault > 0 && --*fault == 0; }

static void highest(long *most, long now) { if (now > *most) *most = now; }

/* The one range that has all of this; 0 if none has any of it, -1 if one has a part. */
static int range_of(Range *ranges, long count, const char *start, size_t bytes, Range **found)
{
    for (long at = 0; at < count; at++) {
        Range *range = &ranges[at];
        if (start >= range->start && start + bytes <= range->start + range->bytes) { *found = range; return 1; }
        if (start < range->start + range->bytes && range->start < start + bytes) return -1;
    }
    return 0;
}

/* Whether all of it is mapped, and shared; sets whether any of it may be read only. */
static int mapped(const char *start, size_t bytes, int *is_shared, int *is_read_only)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[1024];
    uintptr_t at = (uintptr_t)start, end = at + bytes;
    *is_shared = 1, *is_read_only = 0;
    while (maps && at < end && fgets(line, sizeof line, maps)) {
        unsigned long first, last;
        char may[5];
        if (sscanf(line, "%lx-%lx %4s", &first, &last, may) != 3 || at < first || at >= last) continue;
        if (may[3] != 's') *is_shared = 0;
        if (may[1] != 'w') *is_read_only = 1;
        at = last;
    }
    if (maps) fclose(maps);
    return at >= end;
}

static void *work(void *argument)
{
    Stream *stream = argument;
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (!stream->first || W(hold)) pthread_cond_wait(&changed, &mutex);
        Task *task = stream->first;
        long delay = W(delay_us);
        if (task->event) {
            task->event->done = task->number;
        } else {
            pthread_mutex_unlock(&mutex);
            if (delay) usleep(delay);
            pthread_mutex_lock(&mutex);
            for (size_t row = 0; row < task->rows; row++) {
                const char *from = task->from + row * task->pitch;
                Range *found;
                int is_there = range_of(registered, registrations, from, task->width, &found) == 1
                               || range_of(hosts, host_blocks, from, task->width, &found) == 1;
                if (!is_there) violated("a copy reads memory that is registered no longer");
                else memcpy(task->to + row * task->width, from, task->width);
            }
            Range *found;
            if (range_of(registered, registrations, task->from, task->width, &found) == 1) found->reading--;
            W(in_flight)--;
            W(in_flight_bytes) -= task->width * task->rows;
        }
        stream->first = task->next;
        if (!stream->first) stream->last = NULL;
        free(task);
        pthread_cond_broadcast(&changed);
    }
    return NULL;
}

static void push(Stream *stream, Task task)
{
    Task *pushed = malloc(sizeof *pushed);
    *pushed = task;
    pushed->next = NULL;
    if (stream->last) stream->last->next = pushed; else stream->first = pushed;
    stream->last = pushed;
    pthread_cond_broadcast(&changed);
}

/* What every call but the first ones asks for. */
static int checked(void)
{
    if (!started) return NOT_INITIALIZED;
    if (owner != getpid()) { violated("a process that was forked off uses the driver"); return NOT_INITIALIZED; }
    if (depth <= 0) { violated("a call without a current context"); return INVALID_CONTEXT; }
    /* The process ends, and with it the driver: nobody is left to ask for violations. */
    if (W(ended)) fprintf(stderr, "the driver is called after its end\n");
    return SUCCESS;
}

/* Whether something is of the context that the calling thread is in. */
static int is_here(void *context)
{
    if (context == current[depth - 1]) return 1;
    violated("something of another context is used");
    return 0;
}

#define BEGIN() do { int code_ = checked(); if (code_) return code_; pthread_mutex_lock(&mutex); } while (0)
#define END(code) do { int end_ = (code); pthread_mutex_unlock(&mutex); return end_; } while (0)

int cuInit(unsigned flags)
{
    if (flags) return INVALID_VALUE;
    if (W(devices) < 0) return NO_DEVICE;
    if (!started) owner = getpid();
    started = 1;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) { *count = W(devices); return started ? SUCCESS : NOT_INITIALIZED; }

int cuDeviceGet(int *device, int number)
{
    if (number < 0 || number >= W(devices)) return INVALID_DEVICE;
    *device = number + 40; /* a device is not its number */
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    if (device < 40) return INVALID_DEVICE;
    switch (attribute) {
    case 11: *value = W(max_pitch); return SUCCESS;
    case 100: *value = W(host_page_tables); return SUCCESS;
    case 113: *value = W(read_only_register); return SUCCESS;
    default: return INVALID_VALUE;
    }
}

int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)(device + 1); W(contexts)++; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; W(contexts)--; return SUCCESS; }

int cuCtxPushCurrent_v2(void *context)
{
    if (owner != getpid()) { violated("a process that was forked off uses the driver"); return NOT_INITIALIZED; }
    if (!context || depth >= DEPTH) return INVALID_CONTEXT;
    current[depth++] = context;
    pthread_mutex_lock(&mutex);
    W(pushes)++;
    END(SUCCESS);
}

int cuCtxPopCurrent_v2(void **context)
{
    if (depth <= 0) return INVALID_CONTEXT;
    depth--;
    *context = NULL;
    pthread_mutex_lock(&mutex);
    W(pops)++;
    END(SUCCESS);
}

int cuStreamCreate(void **stream, unsigned flags)
{
    BEGIN();
    if (flags != 1) violated("a stream that waits for the default stream");
    Stream *made = calloc(1, sizeof *made);
    made->context = current[depth - 1];
    pthread_create(&made->thread, NULL, work, made);
    *stream = made;
    W(streams)++;
    END(SUCCESS);
}

int cuEventCreate(void **event, unsigned flags)
{
    BEGIN();
    if (flags != 3) violated("an event that keeps a processor busy, or takes the time");
    Event *made = calloc(1, sizeof *made);
    made->alive = 1;
    made->context = current[depth - 1];
    *event = made;
    W(events)++;
    END(SUCCESS);
}

int cuEventRecord(void *event, void *stream)
{
    BEGIN();
    Event *known = event;
    if (!known->alive || !is_here(known->context) || !is_here(((Stream *)stream)->context)) END(INVALID_HANDLE);
    push(stream, (Task){.event = known, .number = ++known->recorded});
    END(SUCCESS);
}

int cuEventSynchronize(void *event)
{
    BEGIN();
    Event *known = event;
    if (!known->alive) END(INVALID_HANDLE);
    long number = known->recorded;
    while (known->done < number) pthread_cond_wait(&changed, &mutex);
    END(due(word("fail_wait")) ? ILLEGAL_ADDRESS : SUCCESS);
}

/* Events are never freed, so that one that is used after its end is seen. */
int cuEventDestroy_v2(void *event)
{
    BEGIN();
    Event *known = event;
    if (!known->alive) { violated("an event is destroyed twice"); END(INVALID_HANDLE); }
    known->alive = 0;
    W(events)--;
    END(SUCCESS);
}

/* Streams of others that wait: the number of the event as it was then. */
static struct { void *stream; Event *event; long number; } waits[MAX];
static long waiting;

int cuStreamWaitEvent(void *stream, void *event, unsigned flags)
{
    BEGIN();
    Event *known = event;
    if (flags || !known->alive || !known->recorded) END(INVALID_VALUE);
    if (waiting < MAX) {
        waits[waiting].stream = stream, waits[waiting].event = known;
        waits[waiting++].number = known->recorded;
    }
    W(waits)++;
    END(SUCCESS);
}

int cuMemHostRegister_v2(void *start, size_t bytes, unsigned flags)
{
    int is_shared, is_read_only;
    Range *found;
    BEGIN();
    if (due(word("fail_registration"))) END(OUT_OF_MEMORY);
    if (flags & READ_ONLY && !W(read_only_register)) END(NOT_SUPPORTED);
    if (!bytes || (uintptr_t)start % 4096 || !mapped(start, bytes, &is_shared, &is_read_only)) END(INVALID_VALUE);
    if (is_read_only && !(flags & READ_ONLY) && !W(host_page_tables)) END(INVALID_VALUE);
    if (!is_shared) violated("a private mapping is registered");
    if (!(flags & PORTABLE)) violated("a registration for one context only");
    if (range_of(registered, registrations, start, bytes, &found)) END(ALREADY_REGISTERED);
    if (registrations == MAX) END(OUT_OF_MEMORY);
    registered[registrations++] = (Range){start, bytes, flags, 0};
    /* As the driver, which pins every page. */
    for (size_t at = 0; at < bytes; at += 4096) (void)*((volatile char *)start + at);
    W(registered_total)++;
    W(registered_bytes) += bytes;
    highest(word("largest_registration"), bytes);
    END(SUCCESS);
}

int cuMemHostUnregister(void *start)
{
    BEGIN();
    for (long at = 0; at < registrations; at++) {
        if (registered[at].start != start) continue;
        if (registered[at].reading) violated("a registration is undone while a copy reads it");
        int is_shared, is_read_only;
        if (!mapped(start, registered[at].bytes, &is_shared, &is_read_only)) violated("memory is unmapped before its registration is undone");
        W(registered_bytes) -= registered[at].bytes;
        registered[at] = registered[--registrations];
        END(SUCCESS);
    }
    END(NOT_REGISTERED);
}

int cuMemHostAlloc(void **start, size_t bytes, unsigned flags)
{
    BEGIN();
    if (due(word("fail_host_alloc"))) END(OUT_OF_MEMORY);
    if (!(flags & PORTABLE)) violated("host memory for one context only");
    *start = aligned_alloc(4096, bytes);
    hosts[host_blocks++] = (Range){*start, bytes, flags, 0};
    END(SUCCESS);
}

int cuMemFreeHost(void *start)
{
    BEGIN();
    for (long at = 0; at < host_blocks; at++) {
        if (hosts[at].start != start) continue;
        free(start);
        hosts[at] = hosts[--host_blocks];
        END(SUCCESS);
    }
    END(INVALID_VALUE);
}

static int copy(char *to, const char *from, size_t pitch, size_t width, size_t rows, Stream *stream)
{
    if (due(word("fail_copy"))) return ILLEGAL_ADDRESS;
    if (!is_here(stream->context)) return INVALID_HANDLE;
    if (!to || !from || !width || !rows) return INVALID_VALUE;
    size_t span = pitch * (rows - 1) + width;
    Range *found = NULL;
    int in_registered = range_of(registered, registrations, from, span, &found);
    if (in_registered == 1) found->reading++;
    if (in_registered < 0) { violated("a copy crosses the border of a registration"); return INVALID_VALUE; }
    if (in_registered == 0) {
        if (range_of(hosts, host_blocks, from, span, &found) != 1) { violated("a copy of memory that is not pinned"); return INVALID_VALUE; }
        W(staged_bytes) += width * rows;
    }
    W(copied_bytes) += width * rows;
    highest(word("most_in_flight"), ++W(in_flight));
    highest(word("most_in_flight_bytes"), W(in_flight_bytes) += width * rows);
    push(stream, (Task){.from = from, .to = to, .pitch = pitch, .width = width, .rows = rows});
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream)
{
    BEGIN();
    W(copies)++;
    END(copy((char *)(uintptr_t)to, from, bytes, bytes, 1, stream));
}

int cuMemcpy2DAsync_v2(const Rectangle *what, void *stream)
{
    BEGIN();
    W(rectangles)++;
    if (what->skind != 1 || what->tkind != 2 || what->sx || what->sy || what->tx || what->ty) END(INVALID_VALUE);
    if (what->spitch < what->width || what->tpitch != what->width) END(INVALID_VALUE);
    if (what->spitch > (size_t)W(max_pitch) || what->tpitch > (size_t)W(max_pitch)) END(INVALID_VALUE);
    END(copy((char *)(uintptr_t)what->tdev, what->shost, what->spitch, what->width, what->height, stream));
}

int cuGetErrorName(int code, const char **name)
{
    *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" :
            code == NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED" : code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : NULL;
    return *name ? SUCCESS : INVALID_VALUE;
}

int cuGetErrorString(int code, const char **text)
{
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" :
            code == NOT_SUPPORTED ? "operation not supported" : code == NO_DEVICE ? "no CUDA-capable device is detected" : NULL;
    return *text ? SUCCESS : INVALID_VALUE;
}

long standin_get(const char *name)
{
    pthread_mutex_lock(&mutex);
    long value = strcmp(name, "registrations") == 0 ? registrations : strcmp(name, "host_blocks") == 0 ? host_blocks : *word(name);
    pthread_mutex_unlock(&mutex);
    return value;
}

void standin_set(const char *name, long value)
{
    pthread_mutex_lock(&mutex);
    *word(name) = value;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

/* What was done that may not be, first; and it is forgotten. */
void standin_violation(char *text, size_t bytes)
{
    pthread_mutex_lock(&mutex);
    snprintf(text, bytes, "%s", violation);
    violation[0] = 0;
    pthread_mutex_unlock(&mutex);
}

/* Whether nothing was done that may not be. A process that was forked off may ask this alone: the lock may be another thread's
 * that is not there any more. */
int standin_is_clean(void) { return !violation[0]; }

/* Waits as long as work on a stream would, and for no more than that. */
void standin_synchronize(void *stream)
{
    pthread_mutex_lock(&mutex);
    for (long at = 0; at < waiting; at++)
        if (waits[at].stream == stream)
            while (waits[at].event->done < waits[at].number) pthread_cond_wait(&changed, &mutex);
    waiting = 0;
    pthread_mutex_unlock(&mutex);
}
