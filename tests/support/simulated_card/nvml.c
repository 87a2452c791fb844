/* NVML for cards that are none: what NVIDIA's own binding (nvidia-ml-py) asks of libnvidia-ml.so.1,
 * answered from the state that the simulated cards share (state.h).
 *
 * A card in the state whose UUID begins with MIG- is an instance of the last card before it that is
 * none; that one has MIG enabled then. The environment says what else a test wants:
 *
 * SIMULATED_COMPUTE_MODE  NVML's number: 0 default, 2 prohibited, 3 exclusive process.
 * SIMULATED_PIDS=host     other numbers than this process knows, as in a container of its own.
 * SIMULATED_PIDS=none     no process is told of.
 * SIMULATED_PIDS=unsized   of no process it is known what it uses.
 * SIMULATED_PIDS=elsewhere  every process is on the last card, too.
 */
#include "state.h"

#include <stdio.h>
#include <string.h>

#define API __attribute__((visibility("default")))

typedef int result;
enum {
  SUCCESS = 0,
  UNINITIALIZED = 1,
  INVALID_ARGUMENT = 2,
  NOT_SUPPORTED = 3,
  NOT_FOUND = 6,
  INSUFFICIENT_SIZE = 7,
  DRIVER_NOT_LOADED = 9,
};

/* A handle is the address of its card in the state. */
typedef struct card *device;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct {
  unsigned pid;
  unsigned long long bytes;
  unsigned gpu_instance, compute_instance;
} process;

#define HOST_PIDS 1000000u
#define NO_INSTANCE 0xffffffffu
#define NOT_AVAILABLE 0xffffffffffffffffull

static struct state *state;

static int index_of(const struct card *card) { return (int)(card - state->card); }
static int is_instance(int index) { return !strncmp(state->card[index].uuid, "MIG-", 4); }

/* The first entry that is no instance, from the one on; the number of entries without one. */
static int next_card(int from) {
  while (from < (int)state->cards && is_instance(from))
    from++;
  return from;
}

static int instances_of(const struct card *card) {
  int first = index_of(card) + 1;
  int end = is_instance(first - 1) ? first : next_card(first);
  return end - first;
}

static const char *pids(void) {
  const char *value = getenv("SIMULATED_PIDS");
  return value ? value : "";
}

static result text(char *to, unsigned length, const char *from) {
  return snprintf(to, length, "%s", from) < (int)length ? SUCCESS : INSUFFICIENT_SIZE;
}

API result nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  if (!state)
    state = state_map();
  return state ? SUCCESS : DRIVER_NOT_LOADED;
}
API result nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API result nvmlShutdown(void) { return state ? SUCCESS : UNINITIALIZED; }

API const char *nvmlErrorString(result code) {
  switch (code) {
  case SUCCESS: return "Success";
  case UNINITIALIZED: return "Uninitialized";
  case INVALID_ARGUMENT: return "Invalid Argument";
  case NOT_SUPPORTED: return "Not Supported";
  case NOT_FOUND: return "Not Found";
  case INSUFFICIENT_SIZE: return "Insufficient Size";
  case DRIVER_NOT_LOADED: return "Driver Not Loaded";
  default: return "Unknown Error";
  }
}

API result nvmlSystemGetDriverVersion(char *to, unsigned length) {
  return text(to, length, "580.95.05");
}
API result nvmlSystemGetNVMLVersion(char *to, unsigned length) {
  return text(to, length, "13.580.95.05");
}
API result nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = 13000, SUCCESS; }
API result nvmlSystemGetCudaDriverVersion(int *version) { return *version = 13000, SUCCESS; }

API result nvmlDeviceGetCount_v2(unsigned *count) {
  *count = 0;
  for (int i = next_card(0); i < (int)state->cards; i = next_card(i + 1))
    ++*count;
  return SUCCESS;
}

API result nvmlDeviceGetHandleByIndex_v2(unsigned index, device *found) {
  for (int i = next_card(0); i < (int)state->cards; i = next_card(i + 1))
    if (!index--)
      return *found = &state->card[i], SUCCESS;
  return INVALID_ARGUMENT;
}

API result nvmlDeviceGetHandleByUUID(const char *uuid, device *found) {
  for (int i = 0; i < (int)state->cards; i++)
    if (!strcmp(state->card[i].uuid, uuid))
      return *found = &state->card[i], SUCCESS;
  return NOT_FOUND;
}

API result nvmlDeviceGetUUID(device card, char *to, unsigned length) {
  return text(to, length, card->uuid);
}
API result nvmlDeviceGetName(device card, char *to, unsigned length) {
  return text(to, length, card->name);
}
API result nvmlDeviceGetIndex(device card, unsigned *index) {
  *index = 0;
  for (int i = next_card(0); i < index_of(card); i = next_card(i + 1))
    ++*index;
  return SUCCESS;
}

/* A card's memory has its instances' in it. */
static unsigned long long used_of(const struct card *card) {
  unsigned long long used = 0;
  for (int i = index_of(card), last = i + instances_of(card); i <= last; i++)
    used += state_used(state, i);
  return used;
}

API result nvmlDeviceGetMemoryInfo(device card, memory *to) {
  unsigned long long used = used_of(card);
  *to = (memory){card->total, used < card->total ? card->total - used : 0, used};
  return SUCCESS;
}
API result nvmlDeviceGetMemoryInfo_v2(device card, memory_v2 *to) {
  memory plain;
  nvmlDeviceGetMemoryInfo(card, &plain);
  *to = (memory_v2){to->version, plain.total, 0, plain.free, plain.used};
  return SUCCESS;
}

API result nvmlDeviceGetMigMode(device card, unsigned *current, unsigned *pending) {
  if (is_instance(index_of(card)))
    return INVALID_ARGUMENT;
  *current = *pending = instances_of(card) > 0;
  return SUCCESS;
}
/* As on a real card there are slots without an instance. */
API result nvmlDeviceGetMaxMigDeviceCount(device card, unsigned *count) {
  *count = instances_of(card) ? 7 : 0;
  return SUCCESS;
}
API result nvmlDeviceGetMigDeviceHandleByIndex(device card, unsigned slot, device *found) {
  if ((int)slot >= instances_of(card))
    return NOT_FOUND;
  return *found = card + 1 + slot, SUCCESS;
}
API result nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device instance, device *found) {
  if (!is_instance(index_of(instance)))
    return INVALID_ARGUMENT;
  while (is_instance(index_of(instance)))
    instance--;
  return *found = instance, SUCCESS;
}
API result nvmlDeviceGetGpuInstanceId(device instance, unsigned *id) {
  device card;
  if (nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance, &card))
    return INVALID_ARGUMENT;
  /* They do not begin at 0: that one is the whole card. */
  return *id = (unsigned)(instance - card) + 6, SUCCESS;
}
API result nvmlDeviceGetComputeInstanceId(device instance, unsigned *id) {
  return is_instance(index_of(instance)) ? (*id = 0, SUCCESS) : INVALID_ARGUMENT;
}

/* Of a card that is split, those of its instances, as NVML tells them. */
static int is_listed(const struct use *use, const struct card *card) {
  int first = index_of(card), last = first + instances_of(card);
  if (!strcmp(pids(), "elsewhere") && first == (int)state->cards - 1)
    return use->pid > 0 && state_is_alive(use->pid);
  for (int i = first; i <= last; i++)
    if (state_counts(use, i))
      return 1;
  return 0;
}

API result nvmlDeviceGetComputeRunningProcesses_v3(device card, unsigned *count, process *to) {
  unsigned room = to ? *count : 0, found = 0;
  if (!strcmp(pids(), "none"))
    return *count = 0, SUCCESS;
  unsigned offset = strcmp(pids(), "host") ? 0 : HOST_PIDS;
  for (int i = 0; i < SIMULATED_USES_MAX; i++) {
    const struct use *use = &state->use[i];
    if (!is_listed(use, card))
      continue;
    unsigned long long bytes = strcmp(pids(), "unsized") ? use->bytes : NOT_AVAILABLE;
    if (found < room)
      to[found] = (process){(unsigned)use->pid + offset, bytes, NO_INSTANCE, NO_INSTANCE};
    found++;
  }
  *count = found;
  return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}
API result nvmlDeviceGetComputeRunningProcesses_v2(device card, unsigned *count, process *to) {
  return nvmlDeviceGetComputeRunningProcesses_v3(card, count, to);
}

API result nvmlDeviceGetUtilizationRates(device card, utilization *to) {
  if (is_instance(index_of(card)) || instances_of(card))
    return NOT_SUPPORTED;
  unsigned share = (unsigned)(100 * used_of(card) / card->total);
  *to = (utilization){share, share};
  return SUCCESS;
}

API result nvmlDeviceGetComputeMode(device card, int *mode) {
  (void)card;
  const char *value = getenv("SIMULATED_COMPUTE_MODE");
  *mode = value ? atoi(value) : 0;
  return SUCCESS;
}
API result nvmlDeviceGetCudaComputeCapability(device card, int *major, int *minor) {
  (void)card;
  *major = 9, *minor = 0;
  return SUCCESS;
}
API result nvmlDeviceGetTotalEccErrors(device card, int type, int counter,
                                       unsigned long long *errors) {
  (void)card, (void)type, (void)counter;
  return *errors = 0, SUCCESS;
}
API result nvmlDeviceGetRemappedRows(device card, unsigned *correctable, unsigned *uncorrectable,
                                     unsigned *pending, unsigned *failed) {
  (void)card;
  *correctable = *uncorrectable = *pending = *failed = 0;
  return SUCCESS;
}
API result nvmlDeviceGetCurrentClocksThrottleReasons(device card, unsigned long long *reasons) {
  (void)card;
  return *reasons = 0, SUCCESS;
}
