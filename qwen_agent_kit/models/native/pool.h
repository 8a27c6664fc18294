/* Threads that share the chunks of a phase.
 *
 * All threads run the same program. A phase has n chunks; a thread takes the next free one until there is none, then
 * waits until all are done. Nobody waits for a thread to arrive: one that lost its core holds up at most the chunk that
 * it is in, and when it comes back it finds the phases done and catches up. A program's number ("turn") is in the upper
 * half of every counter, so that a thread which is still in an old program takes nothing of a new one.
 */
#ifndef QAK_POOL_H
#define QAK_POOL_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MOST_THREADS 64
#define SPINS 20000 /* about 100 us between programs, then sleep */
#define PATIENCE 1500 /* some 20 us at a barrier: longer than a chunk takes by far in a small step */

typedef struct { _Atomic uint64_t next, done; char apart[48]; } phase_t;
typedef struct job job_t;
typedef void (*program_t)(const job_t *job, int thread);

struct job {
    program_t run;
    uint64_t args[40]; /* the program's own struct, copied with the job */
    uint32_t turn;
    int threads;
};

static struct {
    pthread_mutex_t user, lock;
    pthread_cond_t wake;
    _Atomic uint32_t turn; /* odd while a job is being written */
    _Atomic int active;
    int sleeping, started;
    job_t job;
    phase_t *phases;
    int room;
    /* how many threads are used, for as long as another process has one of our cores */
    int fewer;
    int64_t until, pause;
} pool = {.user = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static _Thread_local int64_t waited; /* nanoseconds that this thread lost to chunks of threads that lost their core */

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

INLINE void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The next chunk of phase p, -1 where there is none left, or the program is over. */
INLINE int64_t take(const job_t *job, int p, int64_t n) {
    _Atomic uint64_t *next = &pool.phases[p].next;
    uint64_t seen = atomic_load_explicit(next, memory_order_acquire);
    for (;;) {
        if ((uint32_t)(seen >> 32) != job->turn || (int64_t)(uint32_t)seen >= n) return -1;
        if (atomic_compare_exchange_weak_explicit(next, &seen, seen + 1, memory_order_acq_rel, memory_order_acquire))
            return (int64_t)(uint32_t)seen;
    }
}
INLINE void did(int p) { atomic_fetch_add_explicit(&pool.phases[p].done, 1, memory_order_acq_rel); }

INLINE int settled(const job_t *job, int p, int64_t n, int *over) {
    uint64_t seen = atomic_load_explicit(&pool.phases[p].done, memory_order_acquire);
    *over = (uint32_t)(seen >> 32) != job->turn;
    return *over || (int64_t)(uint32_t)seen >= n;
}

/* Wait until phase p is done; 0 where the program is over. */
static int settle(const job_t *job, int p, int64_t n) {
    int over;
    for (int spins = 0; spins < PATIENCE; spins++) {
        if (settled(job, p, n, &over)) return !over;
        relax();
    }
    int64_t since = now();
    while (!settled(job, p, n, &over)) sched_yield();
    waited += now() - since;
    return !over;
}
#define CHUNKS(i, job, p, n) for (int64_t i; (i = take(job, p, n)) >= 0; did(p))

/* Tests build with QAK_STUMBLE: every thread but the caller's then loses its core now and then, for longer than a
 * small step takes, where it is in no chunk. */
#ifdef QAK_STUMBLE
static _Thread_local uint32_t stumbles;
static void stumble(void) {
    if (stumbles && (stumbles = stumbles * 1664525u + 1013904223u | 1) >> 28 == 0) usleep(QAK_STUMBLE);
}
#else
static void stumble(void) {}
#endif

static void *worker(void *given) {
    int thread = (int)(intptr_t)given;
    uint32_t last = 0;
#ifdef QAK_STUMBLE
    stumbles = (uint32_t)thread;
#endif
    for (;;) {
        for (int spins = 0; (atomic_load(&pool.turn) & 1) || atomic_load(&pool.turn) == last; spins++) {
            if (spins < SPINS) { relax(); continue; }
            pthread_mutex_lock(&pool.lock);
            pool.sleeping++;
            while (atomic_load(&pool.turn) == last) pthread_cond_wait(&pool.wake, &pool.lock);
            pool.sleeping--;
            pthread_mutex_unlock(&pool.lock);
            spins = 0;
        }
        atomic_fetch_add(&pool.active, 1);
        uint32_t turn = atomic_load(&pool.turn);
        job_t job = pool.job;
        atomic_thread_fence(memory_order_seq_cst);
        if (!(turn & 1) && atomic_load(&pool.turn) == turn) {
            last = turn;
            stumble();
            if (thread < job.threads) job.run(&job, thread);
        }
        atomic_fetch_sub(&pool.active, 1);
    }
    return NULL;
}

static void nothing(const job_t *job, int thread) { (void)job; (void)thread; }

/* After this no thread is inside a program. The caller holds `user`. */
static void quiesce(void) {
    atomic_fetch_add(&pool.turn, 1);
    pool.job.run = nothing;
    pool.job.threads = 0;
    atomic_fetch_add(&pool.turn, 1);
    while (atomic_load(&pool.active)) sched_yield();
}

/* A child of fork has none of the threads, and the locks as they happened to be. */
static void after_fork(void) {
    pthread_mutex_init(&pool.user, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.started = pool.sleeping = 0;
    atomic_store(&pool.active, 0);
    if (atomic_load(&pool.turn) & 1) atomic_fetch_add(&pool.turn, 1);
}
__attribute__((constructor)) static void at_load(void) { pthread_atfork(NULL, NULL, after_fork); }

static void enter(void) { pthread_mutex_lock(&pool.user); }
static void leave(void) { pthread_mutex_unlock(&pool.user); }

/* Room for n phases; between enter and leave, before perform. */
static int make_phases(int n) {
    if (n <= pool.room) return 1;
    quiesce();
    phase_t *old = pool.phases;
    pool.phases = NULL;
    pool.room = 0;
    free(old);
    pool.phases = aligned_alloc(64, (size_t)n * sizeof(phase_t));
    pool.room = pool.phases ? n : 0;
    return pool.phases != NULL;
}

/* Fewer threads for a while where the last program mostly waited for one that had lost its core; then all again. */
static int threads_for(int threads, int64_t at) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads < 1) threads = 1;
    return pool.fewer && pool.fewer < threads && at < pool.until ? pool.fewer : threads;
}

static void learn(int threads, int64_t began) {
    int64_t ended = now();
    if (threads < 2) return;
    if (waited > 100000 && waited > (ended - began) / 4) {
        pool.pause = pool.pause ? (pool.pause < 1000000000 ? pool.pause * 2 : pool.pause) : 25000000;
        pool.fewer = threads - 1;
        pool.until = ended + pool.pause;
    } else if (waited < (ended - began) / 16) {
        pool.pause = 0;
    }
}

static void perform(program_t run, const void *args, size_t size, int threads, int phases) {
    int64_t began = now();
    threads = threads_for(threads, began);
    while (pool.started < threads - 1) {
        pthread_t made;
        if (pthread_create(&made, NULL, worker, (void *)(intptr_t)(pool.started + 1))) break;
        pthread_detach(made);
        pool.started++;
    }
    uint32_t turn = atomic_fetch_add(&pool.turn, 1) + 2;
    pool.job.run = run;
    pool.job.turn = turn;
    pool.job.threads = threads;
    memcpy(pool.job.args, args, size);
    for (int p = 0; p < phases; p++) {
        atomic_store_explicit(&pool.phases[p].next, (uint64_t)turn << 32, memory_order_relaxed);
        atomic_store_explicit(&pool.phases[p].done, (uint64_t)turn << 32, memory_order_relaxed);
    }
    job_t job = pool.job;
    if (threads > 1) {
        pthread_mutex_lock(&pool.lock);
        atomic_store(&pool.turn, turn);
        if (pool.sleeping) pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    } else {
        atomic_store(&pool.turn, turn);
    }
    waited = 0;
    job.run(&job, 0);
    learn(threads, began);
}

#endif
