/* Streams and events of a simulated card.
 *
 * A stream is a thread that does what was enqueued, in order. What CUDA says of their order holds:
 * "the default stream" waits for what was enqueued before on streams that were not made
 * NON_BLOCKING, and these wait for it; an event that is waited for is the record that was enqueued
 * last before the wait; a wait for an event that was never recorded is none.
 *
 * One lock guards all, and one condition tells of any change: enough for tests.
 */
#ifndef SIMULATED_CARD_STREAMS_H
#define SIMULATED_CARD_STREAMS_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void (*host_function)(void *);
enum kind { COPY_IN = 1, COPY_OUT = 2, COPY_WITHIN = 3, RECORD = 4, WAIT = 5, HOST = 6, FILL = 7 };

/* One record of an event. Waits are for the one that was the last when they were enqueued. */
struct record {
  int references;
  int done;
  double at_s; /* when */
};

struct event {
  unsigned flags;
  struct record *last; /* NULL: none yet */
};

struct operation {
  struct operation *next;
  enum kind kind;
  uint64_t order; /* among all that was enqueued */
  void *target;
  const void *source;
  size_t nbytes;
  uint64_t bytes_per_s;
  struct record *record;
  unsigned char value;
  host_function function;
};

struct stream {
  struct stream *next;
  unsigned flags;
  int closing;
  uint64_t number; /* for the log: the default stream is 1 */
  struct operation *first, **last;
  pthread_t thread;
};

/* What was done, in the order in which it was: tests read it. */
struct log_entry {
  uint32_t kind, is_end;
  uint64_t stream, source, target, nbytes;
};
enum { LOG_MAX = 1 << 16, NON_BLOCKING = 1, DISABLE_TIMING = 2 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t bus[2] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER};
static struct stream *streams;
static struct stream *default_stream;
static uint64_t enqueued, stream_numbers = 1;
static int held[8];  /* kinds that wait at present */
static int broken;   /* the code that every call returns, once the context is broken */
static int live_events;
static struct log_entry logged[LOG_MAX];
static uint32_t logged_count;

int memory_is_valid(const void *at, size_t nbytes); /* cuda.c; with the lock held */

static double now_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec * 1e-9;
}

static void note(const struct stream *stream, const struct operation *op, int is_end) {
  if (logged_count < LOG_MAX)
    logged[logged_count++] = (struct log_entry){
        op->kind, is_end, stream->number, (uint64_t)op->source, (uint64_t)op->target, op->nbytes};
}

static void release(struct record *record) {
  if (record && !--record->references)
    free(record);
}

static int has_earlier(const struct stream *stream, uint64_t order) {
  return stream && stream->first && stream->first->order < order;
}

/* Whether the default stream's order has this operation wait. */
static int waits_for_others(const struct stream *stream, const struct operation *op) {
  if (stream != default_stream)
    return !(stream->flags & NON_BLOCKING) && has_earlier(default_stream, op->order);
  for (const struct stream *other = streams; other; other = other->next)
    if (other != stream && !(other->flags & NON_BLOCKING) && has_earlier(other, op->order))
      return 1;
  return 0;
}

static void copy(const struct operation *op) {
  pthread_mutex_t *way = op->kind == COPY_WITHIN ? NULL : &bus[op->kind == COPY_OUT];
  if (way)
    pthread_mutex_lock(way);
  if (op->bytes_per_s) {
    uint64_t ns = op->nbytes * 1000000000ull / op->bytes_per_s;
    nanosleep(&(struct timespec){ns / 1000000000, ns % 1000000000}, NULL);
  }
  memmove(op->target, op->source, op->nbytes);
  if (way)
    pthread_mutex_unlock(way);
}

/* Does what an operation is, without the lock where that takes time. */
static void perform(struct operation *op) {
  switch (op->kind) {
  case COPY_IN:
  case COPY_OUT:
  case COPY_WITHIN:
    if (!memory_is_valid(op->kind == COPY_OUT ? op->source : op->target, op->nbytes)) {
      broken = 700; /* CUDA_ERROR_ILLEGAL_ADDRESS */
      return;
    }
    pthread_mutex_unlock(&lock);
    copy(op);
    pthread_mutex_lock(&lock);
    return;
  case HOST:
    pthread_mutex_unlock(&lock);
    op->function((void *)op->source);
    pthread_mutex_lock(&lock);
    return;
  case FILL:
    if (memory_is_valid(op->target, op->nbytes))
      memset(op->target, op->value, op->nbytes);
    else
      broken = 700;
    return;
  case RECORD:
    op->record->done = 1;
    op->record->at_s = now_s();
    return;
  case WAIT:
    return;
  }
}

static int is_ready(const struct stream *stream, const struct operation *op) {
  if (broken)
    return 1;
  if (held[op->kind] || waits_for_others(stream, op))
    return 0;
  return op->kind != WAIT || !op->record || op->record->done;
}

static void *run(void *argument) {
  struct stream *stream = argument;
  pthread_mutex_lock(&lock);
  for (;;) {
    struct operation *op = stream->first;
    if (!op && stream->closing)
      break;
    if (!op || !is_ready(stream, op)) {
      pthread_cond_wait(&changed, &lock);
      continue;
    }
    note(stream, op, 0);
    if (!broken || op->kind == RECORD)
      perform(op);
    note(stream, op, 1);
    stream->first = op->next;
    if (!stream->first)
      stream->last = &stream->first;
    release(op->record);
    free(op);
    pthread_cond_broadcast(&changed);
  }
  for (struct stream **at = &streams; *at; at = &(*at)->next)
    if (*at == stream) {
      *at = stream->next;
      break;
    }
  free(stream);
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  return NULL;
}

/* With the lock held, as what follows. */
static struct stream *stream_open(unsigned flags) {
  struct stream *stream = calloc(1, sizeof *stream);
  stream->flags = flags;
  stream->last = &stream->first;
  stream->number = stream_numbers++;
  stream->next = streams;
  streams = stream;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_create(&stream->thread, &attributes, run, stream);
  pthread_attr_destroy(&attributes);
  return stream;
}

/* NULL for a handle that is none. 0 and 1 are the default stream, and so is here 2, the thread's. */
static struct stream *stream_of(void *handle) {
  if ((uintptr_t)handle <= 2)
    return default_stream;
  for (struct stream *stream = streams; stream; stream = stream->next)
    if (stream == handle && !stream->closing)
      return stream;
  return NULL;
}

static uint64_t enqueue(struct stream *stream, struct operation from) {
  struct operation *op = malloc(sizeof *op);
  *op = from;
  op->next = NULL;
  op->order = ++enqueued;
  if (op->record)
    op->record->references++;
  *stream->last = op;
  stream->last = &op->next;
  pthread_cond_broadcast(&changed);
  return op->order;
}

/* Until the stream has done everything up to that order. */
static void await(const struct stream *stream, uint64_t order) {
  while (has_earlier(stream, order + 1))
    pthread_cond_wait(&changed, &lock);
}

static void await_all(void) {
  for (;;) {
    const struct stream *busy = streams;
    while (busy && !busy->first)
      busy = busy->next;
    if (!busy)
      return;
    pthread_cond_wait(&changed, &lock);
  }
}

#endif
