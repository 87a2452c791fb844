/* libcuda.so.1 for machines without a GPU: what tests need of CUDA's driver API.
 *
 * "Device memory" is memory of the process. One process sees the cards that CUDA_VISIBLE_DEVICES
 * leaves of those in the state's file, and uses the first. Errors are CUDA's: no context current on
 * the calling thread, memory that is used up, a context that is broken. What tests ask of it beyond
 * CUDA has names that begin with simulated_.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <strings.h>

#include "state.h"
#include "streams.h"

enum {
  OK = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  CONTEXT_IS_DESTROYED = 709,
  ALREADY_REGISTERED = 712,
  NOT_REGISTERED = 713,
  CAPTURE_UNSUPPORTED = 900,
};

static const struct { int code; const char *name, *text; } errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
};

/* Memory of the card, or of the host where that is page-locked. */
struct range {
  struct range *next;
  char *at;
  size_t nbytes;
};

static struct state *state;
static int visible[SIMULATED_CARDS_MAX], visible_count;
static struct use *use;
static int retained;
static struct range *device_memory, *page_locked;
static __thread int is_current;
static __thread int capture_mode; /* 0: global, as every thread's is at first; 2: relaxed */
static int capturing;
static int context; /* its address is the context's */

static struct range *find(struct range *ranges, const void *at, size_t nbytes) {
  for (; ranges; ranges = ranges->next)
    if ((char *)at >= ranges->at && (char *)at + nbytes <= ranges->at + ranges->nbytes)
      return ranges;
  return NULL;
}

int memory_is_valid(const void *at, size_t nbytes) { return find(device_memory, at, nbytes) != NULL; }

static void add(struct range **ranges, void *at, size_t nbytes) {
  struct range *range = malloc(sizeof *range);
  *range = (struct range){*ranges, at, nbytes};
  *ranges = range;
}

static int drop(struct range **ranges, const void *at) {
  for (; *ranges; ranges = &(*ranges)->next)
    if ((*ranges)->at == at) {
      struct range *gone = *ranges;
      *ranges = gone->next;
      free(gone);
      return 1;
    }
  return 0;
}

static struct card *own_card(void) { return &state->card[visible[0]]; }

/* Which cards the process may use: as CUDA, up to the first that is not there. */
static void see(const char *allowed) {
  visible_count = 0;
  if (!allowed) {
    for (; visible_count < (int)state->cards; visible_count++)
      visible[visible_count] = visible_count;
    return;
  }
  char words[1024];
  snprintf(words, sizeof words, "%s", allowed);
  char *rest = words;
  for (char *word; (word = strsep(&rest, ",")) && visible_count < SIMULATED_CARDS_MAX;) {
    int card = -1;
    char *end;
    long index = strtol(word, &end, 10);
    if (*word && !*end && index >= 0 && index < (long)state->cards)
      card = (int)index;
    for (int i = 0; card < 0 && i < (int)state->cards && !strncasecmp(word, "GPU-", 4); i++)
      if (!strncasecmp(word, state->card[i].uuid, strlen(word)))
        card = i;
    /* Of an instance's name CUDA needs all. */
    for (int i = 0; card < 0 && i < (int)state->cards && !strncmp(word, "MIG-", 4); i++)
      if (!strcmp(word, state->card[i].uuid))
        card = i;
    if (card < 0)
      return;
    visible[visible_count++] = card;
  }
}

/* Takes the lock and returns from the caller with a code unless its calls can work. */
#define ENTER                                                                                      \
  pthread_mutex_lock(&lock);                                                                       \
  if (!visible_count)                                                                              \
    return leave(NOT_INITIALIZED);                                                                 \
  if (!is_current || !retained)                                                                    \
    return leave(INVALID_CONTEXT);                                                                 \
  if (broken)                                                                                      \
    return leave(broken);

static int leave(int code) {
  pthread_mutex_unlock(&lock);
  return code;
}

int cuInit(unsigned flags) {
  pthread_mutex_lock(&lock);
  if (flags)
    return leave(INVALID_VALUE);
  if (!state)
    state = state_map();
  if (state && !visible_count)
    see(getenv("CUDA_VISIBLE_DEVICES"));
  return leave(visible_count ? OK : NO_DEVICE);
}

int cuDriverGetVersion(int *version) { return *version = 13000, OK; }

int cuGetErrorName(int code, const char **name) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code)
      return *name = errors[i].name, OK;
  return *name = NULL, INVALID_VALUE;
}

int cuGetErrorString(int code, const char **text) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code)
      return *text = errors[i].text, OK;
  return *text = NULL, INVALID_VALUE;
}

int cuDeviceGetCount(int *count) { return *count = visible_count, visible_count ? OK : NOT_INITIALIZED; }

int cuDeviceGet(int *device, int ordinal) {
  if (ordinal < 0 || ordinal >= visible_count)
    return visible_count ? INVALID_DEVICE : NOT_INITIALIZED;
  return *device = ordinal, OK;
}

int cuDeviceGetName(char *name, int room, int device) {
  if (device < 0 || device >= visible_count)
    return INVALID_DEVICE;
  return snprintf(name, room, "%s", state->card[visible[device]].name), OK;
}

int cuDeviceGetUuid(unsigned char *uuid, int device) {
  if (device < 0 || device >= visible_count)
    return INVALID_DEVICE;
  const char *from = state->card[visible[device]].uuid + strlen("GPU-");
  for (int i = 0; i < 16; i++, from += 2) {
    from += *from == '-';
    sscanf(from, "%2hhx", &uuid[i]);
  }
  return OK;
}

int cuDeviceTotalMem(size_t *nbytes, int device) {
  if (device < 0 || device >= visible_count)
    return INVALID_DEVICE;
  return *nbytes = state->card[visible[device]].total, OK;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (device < 0 || device >= visible_count)
    return INVALID_DEVICE;
  /* COMPUTE_CAPABILITY_MAJOR, ASYNC_ENGINE_COUNT, UNIFIED_ADDRESSING, HOST_REGISTER_SUPPORTED */
  *value = attribute == 75 ? 9 : attribute == 40 ? 2 : attribute == 41 || attribute == 99;
  return OK;
}

/* Counts bytes more of the card as this process's, if it has them. */
static int take(uint64_t nbytes) {
  if (!use && !(use = state_use(state, visible[0])))
    return OUT_OF_MEMORY;
  __atomic_add_fetch(&use->bytes, nbytes, __ATOMIC_RELAXED);
  if (state_used(state, visible[0]) <= own_card()->total)
    return OK;
  __atomic_sub_fetch(&use->bytes, nbytes, __ATOMIC_RELAXED);
  return OUT_OF_MEMORY;
}

static void give_back(uint64_t nbytes) { __atomic_sub_fetch(&use->bytes, nbytes, __ATOMIC_RELAXED); }

int cuDevicePrimaryCtxRetain(void **to, int device) {
  pthread_mutex_lock(&lock);
  if (device)
    return leave(visible_count ? INVALID_DEVICE : NOT_INITIALIZED);
  if (!visible_count)
    return leave(NOT_INITIALIZED);
  if (!retained) {
    int code = take(own_card()->context_bytes);
    if (code)
      return leave(code);
    if (!default_stream)
      default_stream = stream_open(0);
  }
  retained++;
  *to = &context;
  return leave(OK);
}

int cuDevicePrimaryCtxRelease(int device) {
  pthread_mutex_lock(&lock);
  if (device || !retained)
    return leave(INVALID_CONTEXT);
  if (!--retained)
    give_back(own_card()->context_bytes);
  return leave(OK);
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  return *flags = 0, *active = retained > 0, device ? INVALID_DEVICE : OK;
}

int cuCtxSetCurrent(void *to) {
  if (to && to != &context)
    return INVALID_CONTEXT;
  return is_current = to != NULL, OK;
}

int cuCtxGetCurrent(void **to) { return *to = is_current ? &context : NULL, OK; }

int cuCtxSynchronize(void) {
  ENTER;
  await_all();
  return leave(broken);
}

int cuMemGetInfo(size_t *free_nbytes, size_t *total) {
  ENTER;
  *total = own_card()->total;
  uint64_t used = state_used(state, visible[0]);
  *free_nbytes = used < *total ? *total - used : 0;
  return leave(OK);
}

int cuMemAlloc(uint64_t *to, size_t nbytes) {
  ENTER;
  if (!nbytes)
    return leave(INVALID_VALUE);
  int code = take(nbytes);
  if (code)
    return leave(code);
  void *at = aligned_alloc(512, (nbytes + 511) / 512 * 512);
  memset(at, 0xCD, nbytes);
  add(&device_memory, at, nbytes);
  *to = (uint64_t)at;
  return leave(OK);
}

int cuMemFree(uint64_t pointer) {
  ENTER;
  struct range *range = find(device_memory, (void *)pointer, 1);
  if (!range || range->at != (char *)pointer)
    return leave(INVALID_VALUE);
  await_all(); /* as CUDA: for all that may use it */
  give_back(range->nbytes);
  memset(range->at, 0xDD, range->nbytes);
  free(range->at);
  drop(&device_memory, (void *)pointer);
  return leave(broken);
}

int cuMemHostRegister(void *at, size_t nbytes, unsigned flags) {
  ENTER;
  (void)flags;
  const char *refused = getenv("SIMULATED_CARD_PAGE_LOCK_ERROR"); /* the code to refuse with */
  if (refused && *refused)
    return leave(atoi(refused));
  if (!at || !nbytes)
    return leave(INVALID_VALUE);
  if (find(page_locked, at, 1))
    return leave(ALREADY_REGISTERED);
  add(&page_locked, at, nbytes);
  return leave(OK);
}

int cuMemHostUnregister(void *at) {
  ENTER;
  return leave(drop(&page_locked, at) ? OK : NOT_REGISTERED);
}

int cuMemAllocHost(void **at, size_t nbytes) {
  ENTER;
  *at = aligned_alloc(4096, (nbytes + 4095) / 4096 * 4096);
  if (!*at)
    return leave(OUT_OF_MEMORY);
  add(&page_locked, *at, nbytes);
  return leave(OK);
}

/* CU_POINTER_ATTRIBUTE_CONTEXT 1, _MEMORY_TYPE 2 (host 1, device 2), _DEVICE_ORDINAL 9 */
int cuPointerGetAttribute(void *to, int attribute, uint64_t pointer) {
  ENTER;
  int on_device = find(device_memory, (void *)pointer, 1) != NULL;
  if (!on_device && !find(page_locked, (void *)pointer, 1))
    return leave(INVALID_VALUE);
  if (attribute == 1)
    *(void **)to = &context;
  else if (attribute == 2)
    *(unsigned *)to = on_device ? 2 : 1;
  else if (attribute == 9)
    *(int *)to = 0;
  else
    return leave(INVALID_VALUE);
  return leave(OK);
}

/* With the lock, which it gives up. What is not page-locked is copied before the call returns. */
static int copy_on(void *handle, enum kind kind, void *target, const void *source, size_t nbytes) {
  struct stream *stream = stream_of(handle);
  const void *on_card = kind == COPY_OUT ? source : target;
  if (!stream)
    return leave(INVALID_HANDLE);
  if (!nbytes)
    return leave(OK);
  if (!memory_is_valid(on_card, nbytes))
    return leave(INVALID_VALUE);
  uint64_t order = enqueue(stream, (struct operation){.kind = kind, .target = target,
      .source = source, .nbytes = nbytes, .bytes_per_s = own_card()->bytes_per_s});
  if (kind != COPY_WITHIN && !find(page_locked, kind == COPY_IN ? source : target, nbytes))
    await(stream, order);
  return leave(broken);
}

int cuMemcpyHtoDAsync(uint64_t target, const void *source, size_t nbytes, void *stream) {
  ENTER;
  return copy_on(stream, COPY_IN, (void *)target, source, nbytes);
}

int cuMemcpyDtoHAsync(void *target, uint64_t source, size_t nbytes, void *stream) {
  ENTER;
  return copy_on(stream, COPY_OUT, target, (void *)source, nbytes);
}

int cuMemcpyDtoDAsync(uint64_t target, uint64_t source, size_t nbytes, void *stream) {
  ENTER;
  return copy_on(stream, COPY_WITHIN, (void *)target, (void *)source, nbytes);
}

int cuMemsetD8Async(uint64_t target, unsigned char value, size_t nbytes, void *handle) {
  ENTER;
  struct stream *stream = stream_of(handle);
  if (!stream || !memory_is_valid((void *)target, nbytes))
    return leave(stream ? INVALID_VALUE : INVALID_HANDLE);
  enqueue(stream, (struct operation){
      .kind = FILL, .target = (void *)target, .nbytes = nbytes, .value = value});
  return leave(OK);
}

int cuStreamCreate(void **stream, unsigned flags) {
  ENTER;
  *stream = stream_open(flags);
  return leave(OK);
}

int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
  (void)priority;
  return cuStreamCreate(stream, flags);
}

int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  ENTER;
  *least = 0, *greatest = -5;
  return leave(OK);
}

int cuStreamDestroy(void *handle) {
  ENTER;
  struct stream *stream = stream_of(handle);
  if (!stream || stream == default_stream)
    return leave(INVALID_HANDLE);
  stream->closing = 1; /* ends when it has done what is enqueued */
  pthread_cond_broadcast(&changed);
  return leave(OK);
}

int cuStreamSynchronize(void *handle) {
  ENTER;
  struct stream *stream = stream_of(handle);
  if (!stream)
    return leave(INVALID_HANDLE);
  await(stream, enqueued);
  return leave(broken);
}

int cuStreamQuery(void *handle) {
  ENTER;
  struct stream *stream = stream_of(handle);
  return leave(!stream ? INVALID_HANDLE : stream->first ? NOT_READY : OK);
}

int cuEventCreate(struct event **to, unsigned flags) {
  ENTER;
  *to = calloc(1, sizeof **to);
  (*to)->flags = flags;
  live_events++;
  return leave(OK);
}

int cuEventDestroy(struct event *event) {
  ENTER;
  release(event->last);
  free(event);
  live_events--;
  return leave(OK);
}

int cuEventRecord(struct event *event, void *handle) {
  ENTER;
  struct stream *stream = stream_of(handle);
  if (!stream || !event) /* as CUDA says of a stream that was destroyed */
    return leave(stream ? INVALID_HANDLE : CONTEXT_IS_DESTROYED);
  release(event->last);
  event->last = calloc(1, sizeof *event->last);
  event->last->references = 1;
  enqueue(stream, (struct operation){.kind = RECORD, .record = event->last});
  return leave(OK);
}

int cuStreamWaitEvent(void *handle, struct event *event, unsigned flags) {
  ENTER;
  struct stream *stream = stream_of(handle);
  if (!stream || !event || flags)
    return leave(flags ? INVALID_VALUE : INVALID_HANDLE);
  enqueue(stream, (struct operation){.kind = WAIT, .record = event->last});
  return leave(OK);
}

int cuEventQuery(struct event *event) {
  ENTER;
  return leave(!event->last || event->last->done ? OK : NOT_READY);
}

int cuEventSynchronize(struct event *event) {
  ENTER;
  if (capturing && capture_mode != 2)
    return leave(CAPTURE_UNSUPPORTED);
  struct record *record = event->last;
  if (record) {
    record->references++;
    while (!record->done)
      pthread_cond_wait(&changed, &lock);
    release(record);
  }
  return leave(broken);
}

int cuThreadExchangeStreamCaptureMode(int *mode) {
  ENTER;
  int before = capture_mode;
  capture_mode = *mode;
  *mode = before;
  return leave(OK);
}

int cuEventElapsedTime(float *ms, struct event *begin, struct event *end) {
  ENTER;
  if ((begin->flags | end->flags) & DISABLE_TIMING || !begin->last || !end->last)
    return leave(INVALID_HANDLE);
  if (!begin->last->done || !end->last->done)
    return leave(NOT_READY);
  *ms = (float)((end->last->at_s - begin->last->at_s) * 1e3);
  return leave(OK);
}

int cuLaunchHostFunc(void *handle, host_function function, void *argument) {
  ENTER;
  struct stream *stream = stream_of(handle);
  if (!stream)
    return leave(INVALID_HANDLE);
  enqueue(stream, (struct operation){.kind = HOST, .function = function, .source = argument});
  return leave(OK);
}

/* Code for the card cannot run here: every kernel is one that accesses address 0. */
int cuModuleLoadData(void **module, const void *image) {
  ENTER;
  return *module = &context, leave(image ? OK : INVALID_VALUE);
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  ENTER;
  return *function = module, leave(*name ? OK : NOT_FOUND);
}
int cuLaunchKernel(void *function) {
  ENTER;
  return broken = 700, leave(function ? OK : INVALID_HANDLE);
}

/* For tests: operations of that kind wait until they are let go. */
void simulated_hold(int kind, int hold) {
  pthread_mutex_lock(&lock);
  held[kind] = hold;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}

/* For tests: breaks the context, as an illegal access (700) does; 0 mends it. */
void simulated_break(int code) {
  pthread_mutex_lock(&lock);
  broken = code;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}

/* For tests: from now on, or no longer, a stream is captured in the global mode. */
void simulated_capture(int is_captured) {
  pthread_mutex_lock(&lock);
  capturing = is_captured;
  pthread_mutex_unlock(&lock);
}

/* For tests: the log so far, to read in place; and forgets it. */
const struct log_entry *simulated_log(uint32_t *count) {
  pthread_mutex_lock(&lock);
  *count = logged_count;
  pthread_mutex_unlock(&lock);
  return logged;
}

void simulated_log_clear(void) {
  pthread_mutex_lock(&lock);
  logged_count = 0;
  pthread_mutex_unlock(&lock);
}

/* For tests: what is there and was not given back: streams, events, allocations, page-locks. */
void simulated_live(int to[4]) {
  pthread_mutex_lock(&lock);
  memset(to, 0, 4 * sizeof *to);
  for (struct stream *stream = streams; stream; stream = stream->next)
    to[0] += stream != default_stream && !stream->closing;
  to[1] = live_events;
  for (struct range *range = device_memory; range; range = range->next)
    to[2]++;
  for (struct range *range = page_locked; range; range = range->next)
    to[3]++;
  pthread_mutex_unlock(&lock);
}

#define SAME(name, version)                                                                        \
  extern __typeof__(name) name##version __attribute__((alias(#name)));
SAME(cuDeviceTotalMem, _v2)
SAME(cuDevicePrimaryCtxRelease, _v2)
SAME(cuMemGetInfo, _v2)
SAME(cuMemAlloc, _v2)
SAME(cuMemFree, _v2)
SAME(cuMemHostRegister, _v2)
SAME(cuMemAllocHost, _v2)
SAME(cuMemcpyHtoDAsync, _v2)
SAME(cuMemcpyDtoHAsync, _v2)
SAME(cuMemcpyDtoDAsync, _v2)
SAME(cuStreamDestroy, _v2)
SAME(cuEventDestroy, _v2)
SAME(cuDeviceGetUuid, _v2)
SAME(cuEventElapsedTime, _v2)

#define NAMED(name) {#name, (void *)name}
static const struct { const char *name; void *function; } functions[] = {
    NAMED(cuInit), NAMED(cuDriverGetVersion), NAMED(cuGetErrorName), NAMED(cuGetErrorString),
    NAMED(cuDeviceGetCount), NAMED(cuDeviceGet), NAMED(cuDeviceGetName), NAMED(cuDeviceGetUuid),
    NAMED(cuDeviceTotalMem), NAMED(cuDeviceGetAttribute), NAMED(cuDevicePrimaryCtxRetain),
    NAMED(cuDevicePrimaryCtxRelease), NAMED(cuDevicePrimaryCtxGetState), NAMED(cuCtxSetCurrent),
    NAMED(cuCtxGetCurrent), NAMED(cuCtxSynchronize), NAMED(cuMemGetInfo), NAMED(cuMemAlloc),
    NAMED(cuMemFree), NAMED(cuMemHostRegister), NAMED(cuMemHostUnregister),
    NAMED(cuMemAllocHost), NAMED(cuPointerGetAttribute), NAMED(cuMemcpyHtoDAsync), NAMED(cuMemcpyDtoHAsync),
    NAMED(cuMemcpyDtoDAsync), NAMED(cuMemsetD8Async), NAMED(cuStreamCreate),
    NAMED(cuStreamCreateWithPriority), NAMED(cuCtxGetStreamPriorityRange), NAMED(cuStreamDestroy),
    NAMED(cuStreamSynchronize), NAMED(cuStreamQuery), NAMED(cuStreamWaitEvent),
    NAMED(cuEventCreate), NAMED(cuEventDestroy), NAMED(cuEventRecord), NAMED(cuEventQuery),
    NAMED(cuEventSynchronize), NAMED(cuEventElapsedTime), NAMED(cuLaunchHostFunc),
    NAMED(cuThreadExchangeStreamCaptureMode),
    NAMED(cuModuleLoadData), NAMED(cuModuleGetFunction), NAMED(cuLaunchKernel),
};

/* How NVIDIA's bindings and CUDA's runtime find functions. */
int cuGetProcAddress_v2(const char *name, void **to, int version, uint64_t flags, int *status) {
  (void)version, (void)flags;
  *to = NULL;
  for (size_t i = 0; i < sizeof functions / sizeof *functions && !*to; i++)
    if (!strcmp(functions[i].name, name))
      *to = functions[i].function;
  if (status)
    *status = *to ? 0 : 1;
  return *to ? OK : NOT_FOUND;
}
