/* What the simulated cards' processes share: one file, mapped by all, named by SIMULATED_CARD.
 *
 * Written first by tests/support/simulated_card.py, which has the same layout as ctypes
 * structures. libcuda.so.1 (cuda.c) counts in it what each process uses of each card;
 * libnvidia-ml.so.1 (nvml.c) reports that. A use whose process is gone counts as nothing.
 */
#ifndef SIMULATED_CARD_STATE_H
#define SIMULATED_CARD_STATE_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#define SIMULATED_CARD_MAGIC 0x53434152u /* "SCAR" */
#define SIMULATED_CARDS_MAX 8
#define SIMULATED_USES_MAX 128

struct card {
  char uuid[96]; /* "GPU-…", NUL-terminated */
  char name[64];
  uint64_t total;         /* bytes of memory */
  uint64_t context_bytes; /* what a process's context takes of it */
  uint64_t bytes_per_s;   /* of a copy over the bus; 0: as fast as memcpy */
};

struct use {
  int32_t pid; /* 0: free */
  int32_t card;
  uint64_t bytes; /* the context's included */
};

struct state {
  uint32_t magic, cards;
  struct card card[SIMULATED_CARDS_MAX];
  struct use use[SIMULATED_USES_MAX];
};

/* The state, or NULL: then there is no driver and no card. */
static inline struct state *state_map(void) {
  const char *path = getenv("SIMULATED_CARD");
  int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (fd < 0)
    return NULL;
  void *at = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (at == MAP_FAILED)
    return NULL;
  struct state *state = at;
  if (state->magic == SIMULATED_CARD_MAGIC && state->cards <= SIMULATED_CARDS_MAX)
    return state;
  munmap(at, sizeof(struct state));
  return NULL;
}

static inline int state_is_alive(int32_t pid) { return !kill(pid, 0) || errno == EPERM; }

/* Whether this entry is what a living process uses of that card. */
static inline int state_counts(const struct use *use, int32_t card) {
  int32_t pid = __atomic_load_n(&use->pid, __ATOMIC_ACQUIRE);
  return pid > 0 && use->card == card && state_is_alive(pid);
}

/* Bytes of a card that living processes use. */
static inline uint64_t state_used(const struct state *state, int32_t card) {
  uint64_t used = 0;
  for (int i = 0; i < SIMULATED_USES_MAX; i++)
    if (state_counts(&state->use[i], card))
      used += __atomic_load_n(&state->use[i].bytes, __ATOMIC_RELAXED);
  return used;
}

/* This process's entry for that card, made if there is none; NULL when all are taken. */
static inline struct use *state_use(struct state *state, int32_t card) {
  int32_t own = getpid();
  for (int i = 0; i < SIMULATED_USES_MAX; i++)
    if (state->use[i].pid == own && state->use[i].card == card)
      return &state->use[i];
  for (int i = 0; i < SIMULATED_USES_MAX; i++) {
    struct use *use = &state->use[i];
    int32_t pid = __atomic_load_n(&use->pid, __ATOMIC_ACQUIRE);
    if (pid > 0 && state_is_alive(pid))
      continue;
    /* -1: taken, and not yet what it says. */
    if (!__atomic_compare_exchange_n(&use->pid, &pid, -1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
      continue;
    use->card = card;
    use->bytes = 0;
    __atomic_store_n(&use->pid, own, __ATOMIC_RELEASE);
    return use;
  }
  return NULL;
}

#endif
