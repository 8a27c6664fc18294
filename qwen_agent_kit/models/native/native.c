/* A linear layer, or a whole step of the decoder, in one call.
 *
 * A thread that lost its core may still be on its way through a step that is over, while the next one, of another model
 * even, uses the same scratch. So what a thread reads outside the chunks that it took is owned by the pool or kept alive
 * by the caller until `qak_quiesce`; it may be noise by then, so it is never an index or an address; and what a thread
 * writes outside its chunks goes where only this thread ever writes, `own`.
 */
#include "simd.h"
#include "pool.h"
#include "gemm.h"
#include "attention.h"
#include "pack.h"

typedef struct { matrix_t gate_up, down; } mlp_t;

typedef struct {
    const float *attn_norm, *mlp_norm; /* [hidden] */
    const float *q_norm, *k_norm;      /* [dim] or NULL */
    matrix_t qkv, out;
    mlp_t mlp;             /* the dense one, or the shared expert */
    const mlp_t *expert;   /* [experts], NULL for a dense layer */
    const float *router;   /* [experts, hidden] */
    const float *shared;   /* [hidden], how much of the shared expert, or NULL */
    int64_t window;        /* 0 for none */
} layer_t;

typedef struct {
    const layer_t *layers;
    const float *norm;
    const uint16_t *dense; /* embedding [vocab, hidden] in bfloat16; NULL where `head` holds it */
    matrix_t head;
    int64_t *expert_bytes; /* bytes of experts that were read so far */
    int32_t count, hidden, heads, kv_heads, dim, vocab, widest, inner, experts, top, normalise, unused;
    float eps;
} model_t;

typedef struct {
    const uint64_t *slabs; /* [layers][2] addresses of keys and values [kv_heads, capacity, dim] in bfloat16 */
    int64_t capacity, start, count, wanted;
} segment_t;

typedef struct { int32_t segment, first, rows, position; } piece_t;

#define FEW 4 /* so few rows each thread quantises for itself, which saves a barrier */

typedef struct {
    const model_t *model;
    const int64_t *ids;
    const float *embeds, *cos, *sin, *stretch; /* [rows, hidden] or NULL, [rows, dim] twice, [rows] or NULL */
    float *logits;
    int32_t rows, wanted, pieces, decode, scatter, unused;
    /* owned by the pool */
    segment_t *segments;
    piece_t *piece;
    int32_t *kept; /* rows whose logits are wanted */
    float *x, *qkv, *mixed, *inner, *routed;
    int32_t *chosen, *pair, *used; /* experts of each row; pairs in order of their expert; [expert, from, to] in use */
    float *share;
    uint8_t *acts, *own;
    attention_t *attention;
    int64_t act_bytes, own_bytes;
    int32_t few_kept[FEW]; /* `kept` where they are few */
} step_t;

typedef struct {
    matrix_t matrix;
    const float *x;
    float *y;
    int32_t rows, unused;
    uint8_t *acts, *own;
    int64_t act_bytes, own_bytes;
} product_t;

_Static_assert(sizeof(step_t) <= sizeof(((job_t *)0)->args), "a step travels with its job");

#define BLOCK 64  /* rows that share a pass over the weights */
#define CHUNK_ROWS 4

/* What the threads of a step share, and what each quantises few rows into: as much for every thread that there may be,
 * at a place that depends on the thread alone. */
typedef struct { char *memory; size_t size; } room_t;
static room_t scratch, own;

static int make_room(room_t *room, size_t size) {
    if (size <= room->size) return 1;
    quiesce();
    char *old = room->memory;
    *room = (room_t){0}; /* a fork may come at any moment */
    free(old);
    size = (size + size / 4 + 63) / 64 * 64;
    room->memory = aligned_alloc(64, size);
    room->size = room->memory ? size : 0;
    return room->memory != NULL;
}

/* In the tests' build: what is read before it was written is no number. */
static void blot(room_t *room) {
#ifdef QAK_STUMBLE
    memset(room->memory, 0xff, room->size);
#endif
    (void)room;
}

static int make_own(int64_t act_bytes) { return make_room(&own, (size_t)(MOST_THREADS * FEW * act_bytes)); }
static int64_t own_bytes(void) { return (int64_t)(own.size / MOST_THREADS / 64 * 64); }

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* y = or += the product of `rows` quantised rows that lie `stride` apart. 0 where the program is over. */
static int product(const job_t *job, int p, const matrix_t *m, const uint8_t *acts, int64_t stride, int rows, float *y,
                   int64_t wide, int add) {
    int blocks = blocks_of(m), bands = (rows + BLOCK - 1) / BLOCK;
    int each = blocks / (job->threads * (bands > 4 ? 4 : 12 / bands));
    each = each < 2 ? 2 : each > 64 ? 64 : each & ~1;
    int parts = (blocks + each - 1) / each;
    CHUNKS(i, job, p, (int64_t)parts * bands) {
        const uint8_t *x[BLOCK];
        float *out[BLOCK];
        int band = (int)(i / parts) * BLOCK, from = (int)(i % parts) * each;
        int some = rows - band < BLOCK ? rows - band : BLOCK;
        for (int r = 0; r < some; r++) {
            x[r] = acts + (band + r) * stride;
            out[r] = y + (band + r) * wide;
        }
        multiply(m, from, from + each < blocks ? from + each : blocks, x, out, some, add);
    }
    return settle(job, p, (int64_t)parts * bands);
}

static void normalise(const float *x, const float *weight, int n, float eps, float *y) {
    v16 sum = splat(0);
    float rest = 0;
    int i = 0;
    for (; i + 16 <= n; i += 16) { v16 v = load16(x + i); sum = fma16(v, v, sum); }
    for (; i < n; i++) rest += x[i] * x[i];
    float scale = 1.0f / sqrtf((sum16(sum) + rest) / (float)n + eps);
    for (i = 0; i + 16 <= n; i += 16) store16(y + i, load16(x + i) * splat(scale) * load16(weight + i));
    for (; i < n; i++) y[i] = x[i] * scale * weight[i];
}

static void gate(const float *both, int n, float *y) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 g = load16(both + i);
        store16(y + i, g / (splat(1) + exp16(splat(0) - g)) * load16(both + n + i));
    }
    for (; i < n; i++) y[i] = both[i] / (1 + expf(-both[i])) * both[n + i];
}

enum { PLAIN, NORMED, GATED };

/* Quantise `rows` rows for `m`: as they are, normed, or gated. Few rows each thread makes for itself and `*acts` is its
 * own; many are shared out, and phase p is used. 0 where the program is over. */
static int prepare(const job_t *job, int p, int thread, const step_t *s, const matrix_t *m, int how, const float *x,
                   int64_t wide, const float *weight, int rows, const int32_t *which, const uint8_t **acts) {
    float buffer[m->k + 16];
    int few = rows <= FEW;
    stumble();
    uint8_t *to = few ? s->own + thread * s->own_bytes : s->acts;
    int parts = few ? 1 : (rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    *acts = to;
    for (int64_t i = few ? 0 : take(job, p, parts); few ? i < 1 : i >= 0; i = few ? 1 : take(job, p, parts)) {
        int first = (int)i * CHUNK_ROWS, last = rows < first + CHUNK_ROWS ? rows : first + CHUNK_ROWS;
        for (int r = first; r < last; r++) {
            const float *row = x + (which ? which[r] : r) * wide;
            if (how == NORMED) normalise(row, weight, m->k, s->model->eps, buffer);
            if (how == GATED) gate(row, m->k, buffer);
            quantise_row(how == PLAIN ? row : buffer, m->k, to + r * s->act_bytes, m->groups, m->kind);
        }
        if (!few) did(p);
    }
    return few || settle(job, p, parts);
}

INLINE void rotate(float *h, int dim, const float *cos, const float *sin, float by) {
    int half = dim / 2;
    for (int i = 0; i < half; i++) {
        float a = h[i], b = h[i + half];
        h[i] = (a * cos[i] + b * sin[i]) * by;
        h[i + half] = (b * cos[i + half] + a * sin[i + half]) * by;
    }
}

/* Norm and turn the queries of a row and write its keys and values, for key heads `from` to `to`. */
static void place(const step_t *s, int layer, const segment_t *segment, int row, int64_t position, int from, int to) {
    const model_t *model = s->model;
    const layer_t *l = model->layers + layer;
    int dim = model->dim, heads = model->heads, group = heads / model->kv_heads;
    float *qkv = s->qkv + (int64_t)row * (heads + 2 * model->kv_heads) * dim;
    const float *cos = s->cos + (int64_t)row * dim, *sin = s->sin + (int64_t)row * dim;
    float by = (s->stretch ? s->stretch[row] : 1.0f) / sqrtf((float)dim);
    for (int h = from * group; h < to * group; h++) {
        float *q = qkv + h * dim;
        if (l->q_norm) normalise(q, l->q_norm, dim, model->eps, q);
        rotate(q, dim, cos, sin, by);
    }
    for (int h = from; h < to; h++) {
        float *k = qkv + (heads + h) * dim, *v = k + model->kv_heads * dim;
        int64_t at = (h * segment->capacity + position) * dim;
        uint16_t *keys = (uint16_t *)segment->slabs[2 * layer] + at, *values = (uint16_t *)segment->slabs[2 * layer + 1] + at;
        if (l->k_norm) normalise(k, l->k_norm, dim, model->eps, k);
        rotate(k, dim, cos, sin, 1.0f);
        for (int i = 0; i < dim; i++) keys[i] = to_bf16(k[i]);
        for (int i = 0; i < dim; i++) values[i] = to_bf16(v[i]);
    }
}

static void attend_piece(const step_t *s, int layer, const piece_t *piece, int head, attention_t *a) {
    const model_t *model = s->model;
    const segment_t *segment = s->segments + piece->segment;
    int dim = model->dim, group = model->heads / model->kv_heads;
    int64_t at = head * segment->capacity * dim;
    if (s->decode) place(s, layer, segment, piece->first, piece->position, head, head + 1);
    for (int r = 0; r < piece->rows; r++)
        for (int g = 0; g < group; g++) {
            int q = r * group + g;
            const float *from = s->qkv + ((int64_t)(piece->first + r) * (model->heads + 2 * model->kv_heads) + head * group + g) * dim;
            memcpy(a->queries + q * MOST_DIM, from, (size_t)dim * sizeof(float));
            a->last[q] = piece->position + r;
        }
    attend(a, piece->rows * group, (uint16_t *)segment->slabs[2 * layer] + at,
           (uint16_t *)segment->slabs[2 * layer + 1] + at, 2, dim, (int)model->layers[layer].window);
    for (int r = 0; r < piece->rows; r++)
        for (int g = 0; g < group; g++)
            memcpy(s->mixed + ((int64_t)(piece->first + r) * model->heads + head * group + g) * dim,
                   a->mixed + (r * group + g) * MOST_DIM, (size_t)dim * sizeof(float));
}

static int attention(const job_t *job, int p, int thread, const step_t *s, int layer) {
    const model_t *model = s->model;
    if (!s->decode) {
        CHUNKS(i, job, p, s->pieces) {
            const piece_t *piece = s->piece + i;
            for (int r = 0; r < piece->rows; r++)
                place(s, layer, s->segments + piece->segment, piece->first + r, piece->position + r, 0, model->kv_heads);
        }
        if (!settle(job, p, s->pieces)) return 0;
    }
    int64_t n = (int64_t)s->pieces * model->kv_heads;
    CHUNKS(i, job, p + 1, n) { /* the last rows see the most, so they go first */
        int64_t j = n - 1 - i;
        attend_piece(s, layer, s->piece + j / model->kv_heads, (int)(j % model->kv_heads), s->attention + thread);
    }
    return settle(job, p + 1, n);
}

/* Which experts a row takes, and how much of each; the shared one is the last. */
static void route(const step_t *s, const layer_t *l, const float *x, int row) {
    const model_t *model = s->model;
    int experts = model->experts, each = model->top + (l->shared != NULL);
    float *scores = s->routed + (int64_t)row * experts, most = -INFINITY, total = 0, sum = 0;
    int32_t *chosen = s->chosen + row * each;
    float *share = s->share + row * each;
    for (int e = 0; e <= experts; e++) {
        const float *w = e < experts ? l->router + (int64_t)e * model->hidden : l->shared;
        if (!w) break;
        v16 acc = splat(0);
        float rest = 0;
        int i = 0;
        for (; i + 16 <= model->hidden; i += 16) acc = fma16(load16(w + i), load16(x + i), acc);
        for (; i < model->hidden; i++) rest += w[i] * x[i];
        rest += sum16(acc);
        if (e == experts) { chosen[model->top] = experts; share[model->top] = 1 / (1 + expf(-rest)); break; }
        scores[e] = rest;
        if (rest > most) most = rest;
    }
    for (int e = 0; e < experts; e++) total += scores[e] = expf(scores[e] - most);
    for (int k = 0; k < model->top; k++) {
        int best = 0;
        for (int e = 1; e < experts; e++) if (scores[e] > scores[best]) best = e;
        chosen[k] = best;
        sum += share[k] = scores[best] / total;
        scores[best] = -1;
    }
    if (model->normalise) for (int k = 0; k < model->top; k++) share[k] /= sum;
}

/* Pairs of a row and an expert in the order of the experts, and the experts in use: used[0] of them. */
static void gather(const step_t *s, const layer_t *l) {
    const model_t *model = s->model;
    int each = model->top + (l->shared != NULL), pairs = s->rows * each, at = 0, n = 0;
    for (int e = 0; e <= model->experts; e++) {
        int from = at;
        for (int i = 0; i < pairs; i++) if (s->chosen[i] == e) s->pair[at++] = i;
        if (at == from) continue;
        int32_t *used = s->used + 1 + 3 * n++;
        used[0] = e; used[1] = from; used[2] = at;
        const mlp_t *m = e < model->experts ? l->expert + e : &l->mlp;
        *model->expert_bytes += (int64_t)(blocks_of(&m->gate_up) * block_bytes(m->gate_up.kind, m->gate_up.groups) +
                                          blocks_of(&m->down) * block_bytes(m->down.kind, m->down.groups));
    }
    s->used[0] = n;
}

static int sparse(const job_t *job, int p, const step_t *s, const layer_t *l) {
    const model_t *model = s->model;
    int each = model->top + (l->shared != NULL), pairs = s->rows * each, parts = 2 * job->threads;
    int64_t wide = 2 * (int64_t)model->widest;
    float *result = s->inner + (int64_t)pairs * wide; /* [pairs, hidden] */
    uint8_t *gated = s->acts + (int64_t)s->rows * s->act_bytes;
    CHUNKS(r, job, p, s->rows) {
        float normed[model->hidden + 16];
        normalise(s->x + r * model->hidden, l->mlp_norm, model->hidden, model->eps, normed);
        quantise_row(normed, model->hidden, s->acts + r * s->act_bytes, l->expert->gate_up.groups, l->expert->gate_up.kind);
        route(s, l, normed, (int)r);
    }
    if (!settle(job, p, s->rows)) return 0;
    CHUNKS(i, job, p + 1, 1) gather(s, l);
    if (!settle(job, p + 1, 1)) return 0;
    for (int down = 0; down < 2; down++) {
        int64_t n = (int64_t)s->used[0] * parts;
        CHUNKS(i, job, p + 2 + 2 * down, n) {
            const int32_t *used = s->used + 1 + 3 * (i / parts);
            const mlp_t *mlp = used[0] < model->experts ? l->expert + used[0] : &l->mlp;
            const matrix_t *m = down ? &mlp->down : &mlp->gate_up;
            int blocks = blocks_of(m), part = (int)(i % parts);
            for (int from = used[1]; from < used[2]; from += BLOCK) {
                const uint8_t *x[BLOCK];
                float *out[BLOCK];
                int some = used[2] - from < BLOCK ? used[2] - from : BLOCK;
                for (int r = 0; r < some; r++) {
                    int pair = s->pair[from + r];
                    x[r] = down ? gated + pair * s->act_bytes : s->acts + pair / each * s->act_bytes;
                    out[r] = down ? result + (int64_t)pair * model->hidden : s->inner + pair * wide;
                }
                multiply(m, blocks * part / parts, blocks * (part + 1) / parts, x, out, some, 0);
            }
        }
        if (!settle(job, p + 2 + 2 * down, n)) return 0;
        if (down) break;
        CHUNKS(i, job, p + 3, pairs) {
            const mlp_t *mlp = s->chosen[i] < model->experts ? l->expert + s->chosen[i] : &l->mlp;
            float buffer[mlp->down.k + 16];
            gate(s->inner + i * wide, mlp->down.k, buffer);
            quantise_row(buffer, mlp->down.k, gated + i * s->act_bytes, mlp->down.groups, mlp->down.kind);
        }
        if (!settle(job, p + 3, pairs)) return 0;
    }
    CHUNKS(r, job, p + 5, s->rows) {
        float *x = s->x + r * model->hidden;
        for (int k = 0; k < each; k++) {
            const float *y = result + (r * each + k) * model->hidden;
            float share = s->share[r * each + k];
            for (int i = 0; i < model->hidden; i++) x[i] += share * y[i];
        }
    }
    return settle(job, p + 5, s->rows);
}

#define LAYER_PHASES 14

static void run_step(const job_t *job, int thread) {
    step_t s;
    memcpy(&s, job->args, sizeof s);
    const model_t *m = s.model;
    const uint8_t *acts;
    int p = 1;
    int hidden = m->hidden, wide = (m->heads + 2 * m->kv_heads) * m->dim;
    CHUNKS(r, job, 0, s.rows) {
        float *x = s.x + r * hidden;
        if (s.embeds) memcpy(x, s.embeds + r * hidden, (size_t)hidden * sizeof(float));
        else if (m->dense) for (int i = 0; i < hidden; i++) x[i] = from_bf16(m->dense[s.ids[r] * hidden + i]);
        else unpack_row(&m->head, s.ids[r], x);
    }
    if (!settle(job, 0, s.rows)) return;
    for (int i = 0; i < m->count; i++, p += LAYER_PHASES) {
        const layer_t *l = m->layers + i;
        if (!prepare(job, p, thread, &s, &l->qkv, NORMED, s.x, hidden, l->attn_norm, s.rows, NULL, &acts)) return;
        if (!product(job, p + 1, &l->qkv, acts, s.act_bytes, s.rows, s.qkv, wide, 0)) return;
        if (!attention(job, p + 2, thread, &s, i)) return;
        if (!prepare(job, p + 4, thread, &s, &l->out, PLAIN, s.mixed, m->heads * m->dim, NULL, s.rows, NULL, &acts)) return;
        if (!product(job, p + 5, &l->out, acts, s.act_bytes, s.rows, s.x, hidden, 1)) return;
        if (l->expert) {
            if (!sparse(job, p + 6, &s, l)) return;
            continue;
        }
        const matrix_t *up = &l->mlp.gate_up, *down = &l->mlp.down;
        if (!prepare(job, p + 6, thread, &s, up, NORMED, s.x, hidden, l->mlp_norm, s.rows, NULL, &acts)) return;
        if (!product(job, p + 7, up, acts, s.act_bytes, s.rows, s.inner, up->n, 0)) return;
        if (!prepare(job, p + 8, thread, &s, down, GATED, s.inner, up->n, NULL, s.rows, NULL, &acts)) return;
        if (!product(job, p + 9, down, acts, s.act_bytes, s.rows, s.x, hidden, 1)) return;
    }
    if (!s.wanted) return;
    const int32_t *kept = s.wanted <= FEW ? s.few_kept : s.kept;
    if (!prepare(job, p, thread, &s, &m->head, NORMED, s.x, hidden, m->norm, s.wanted, kept, &acts)) return;
    product(job, p + 1, &m->head, acts, s.act_bytes, s.wanted, s.logits, m->vocab, 0);
}

/* Cut memory off the scratch; with no memory, count what is needed. */
typedef struct { char *base; size_t used; } cutter_t;
static void *cut(cutter_t *c, int64_t count, size_t each) {
    char *p = c->base ? c->base + c->used : NULL;
    c->used += ((size_t)count * each + 127) / 64 * 64;
    return p;
}

static void cut_step(cutter_t *c, step_t *s, int segments, int pieces, int threads) {
    const model_t *m = s->model;
    int64_t rows = s->rows, each = m->experts ? m->top + 1 : 1, heads = m->heads + 2 * m->kv_heads;
    int64_t inner = rows * each * (2 * (int64_t)m->widest + (m->experts ? m->hidden : 0));
    s->act_bytes = (int64_t)row_bytes((int)((most(most(m->hidden, m->widest), m->heads * m->dim) + 31) / 32));
    s->segments = cut(c, segments, sizeof(segment_t));
    s->piece = cut(c, pieces, sizeof(piece_t));
    s->kept = cut(c, rows, 4);
    s->x = cut(c, rows * m->hidden, 4);
    s->qkv = cut(c, rows * heads * m->dim, 4);
    s->mixed = cut(c, rows * m->heads * m->dim, 4);
    s->inner = cut(c, inner, 4);
    s->routed = cut(c, rows * m->experts, 4);
    s->chosen = cut(c, rows * each, 4);
    s->pair = cut(c, rows * each, 4);
    s->used = cut(c, 1 + 3 * (int64_t)(m->experts + 1), 4);
    s->share = cut(c, rows * each, 4);
    s->acts = cut(c, rows * (each + 1), (size_t)s->act_bytes);
    s->attention = cut(c, threads, sizeof(attention_t));
}

/* Rows of one segment that are computed together: as many as the queries that attention takes at once. */
static int cut_pieces(const step_t *s, const segment_t *segments, int count, piece_t *to) {
    int group = s->model->heads / s->model->kv_heads, most = MOST_QUERIES / group, n = 0, first = 0;
    for (int i = 0; i < count; i++)
        for (int64_t r = 0; r < segments[i].count; r += most) {
            int64_t left = segments[i].count - r;
            if (to) to[n] = (piece_t){i, first, (int32_t)(left < most ? left : most), (int32_t)(segments[i].start + r)};
            first += (int32_t)(left < most ? left : most);
            n++;
        }
    return n;
}

/* Compute the rows of `count` segments; 1 where there is no memory for it. */
int qak_step(const model_t *model, const int64_t *ids, const float *embeds, const float *cos, const float *sin,
             const float *stretch, const segment_t *segments, int count, float *logits, int threads) {
    step_t s = {.model = model, .ids = ids, .embeds = embeds, .cos = cos, .sin = sin, .stretch = stretch, .logits = logits};
    cutter_t counted = {0}, cutter = {0};
    int phases = model->count * LAYER_PHASES + 8;
    s.decode = 1;
    if (threads < 1) threads = 1;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    for (int i = 0; i < count; i++) {
        s.rows += (int32_t)segments[i].count;
        s.wanted += (int32_t)segments[i].wanted;
        if (segments[i].count != 1) s.decode = 0;
    }
    s.pieces = cut_pieces(&s, segments, count, NULL);
    enter();
    cut_step(&counted, &s, count, s.pieces, threads);
    if (!make_phases(phases) || !make_room(&scratch, counted.used) || !make_own(s.act_bytes)) {
        leave();
        return 1;
    }
    s.own = (uint8_t *)own.memory;
    s.own_bytes = own_bytes();
    blot(&scratch);
    cutter.base = scratch.memory;
    cut_step(&cutter, &s, count, s.pieces, threads);
    memcpy(s.segments, segments, (size_t)count * sizeof(segment_t));
    cut_pieces(&s, segments, count, s.piece);
    for (int i = 0, row = 0, n = 0; i < count; i++) {
        row += (int)segments[i].count;
        for (int64_t w = segments[i].wanted; w > 0; w--) s.kept[n++] = row - (int32_t)w;
    }
    memcpy(s.few_kept, s.kept, (size_t)(s.wanted < FEW ? s.wanted : FEW) * sizeof(int32_t));
    perform(run_step, &s, sizeof s, threads, phases);
    leave();
    return 0;
}

static void run_product(const job_t *job, int thread) {
    product_t p;
    memcpy(&p, job->args, sizeof p);
    step_t s = {.acts = p.acts, .own = p.own, .act_bytes = p.act_bytes, .own_bytes = p.own_bytes};
    const uint8_t *acts;
    if (!prepare(job, 0, thread, &s, &p.matrix, PLAIN, p.x, p.matrix.k, NULL, p.rows, NULL, &acts)) return;
    product(job, 1, &p.matrix, acts, p.act_bytes, p.rows, p.y, p.matrix.n, 0);
}

/* y [rows, n] = x [rows, k] times the matrix, plus its bias; 1 where there is no memory for it. */
int qak_product(const matrix_t *matrix, const float *x, int rows, float *y, int threads) {
    product_t p = {.matrix = *matrix, .rows = rows, .x = x, .y = y, .act_bytes = (int64_t)row_bytes(matrix->groups)};
    if (threads < 1) threads = 1;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    enter();
    size_t few = rows <= FEW ? (size_t)rows * matrix->k * sizeof(float) : 0;
    if (!make_phases(2) || !make_room(&scratch, few + (size_t)rows * p.act_bytes) || !make_own(p.act_bytes)) {
        leave();
        return 1;
    }
    p.own = (uint8_t *)own.memory;
    p.own_bytes = own_bytes();
    p.acts = (uint8_t *)scratch.memory;
    if (few) p.x = memcpy(scratch.memory, x, few); /* every thread reads all of it, and the caller's may be gone */
    perform(run_product, &p, sizeof p, threads, 2);
    leave();
    return 0;
}

/* Rows of the matrix in float32: y [count, k]. */
void qak_rows(const matrix_t *matrix, const int64_t *ids, int count, float *y) {
    for (int i = 0; i < count; i++) unpack_row(matrix, ids[i], y + (int64_t)i * matrix->k);
}

typedef struct { const float *w; uint8_t *out; int32_t n, k, kind, groups; } packing_t;
static void run_pack(const job_t *job, int thread) {
    packing_t p;
    (void)thread;
    memcpy(&p, job->args, sizeof p);
    int64_t blocks = (p.n + 15) / 16;
    CHUNKS(b, job, 0, blocks)
        pack_block(p.w, p.n, p.k, p.kind, p.groups, (int)b, p.out + b * (int64_t)block_bytes(p.kind, p.groups));
    settle(job, 0, blocks);
}

/* Pack w [n, k] into tiles; `kind` is 0 for int8, 1 for int4. */
int qak_pack(const float *w, int n, int k, int kind, uint8_t *out, int threads) {
    packing_t p = {w, out, n, k, kind, (k + 31) / 32};
    enter();
    int made = make_phases(1);
    if (made) perform(run_pack, &p, sizeof p, threads < 1 ? 1 : threads, 1);
    leave();
    return !made;
}

/* Returns when no thread reads anything that a caller gave; to be called before it is freed. */
void qak_quiesce(void) {
    enter();
    quiesce();
    leave();
}

/* Read `count` bytes with `threads` threads, as fast as the memory gives them; the sum keeps the compiler honest. */
typedef struct { const uint8_t *data; int64_t count, part; } sweep_t;
static _Atomic uint64_t swept;
static void run_sweep(const job_t *job, int thread) {
    sweep_t s;
    (void)thread;
    memcpy(&s, job->args, sizeof s);
    int64_t n = s.count / s.part;
    CHUNKS(i, job, 0, n) {
        w16 sum[4];
        memset(sum, 0, sizeof sum);
        for (const uint8_t *p = s.data + i * s.part, *end = p + s.part; p < end; p += 256)
            for (int j = 0; j < 4; j++) { w16 v; memcpy(&v, p + 64 * j, 64); sum[j] = sum[j] ^ v; }
        uint64_t some[32], all = 0;
        memcpy(some, sum, sizeof sum);
        for (int j = 0; j < 32; j++) all ^= some[j];
        atomic_fetch_add(&swept, all);
    }
    settle(job, 0, n);
}
uint64_t qak_sweep(const uint8_t *data, int64_t count, int threads) {
    sweep_t s = {data, count, 1 << 18};
    enter();
    if (make_phases(1)) perform(run_sweep, &s, sizeof s, threads, 1);
    leave();
    return atomic_load(&swept);
}

/* What the kernels were built for: 2 AVX512-VNNI, 1 AVX512, 0 portable. */
int qak_level(void) {
#if defined(QAK_VNNI)
    return 2;
#elif defined(QAK_AVX512)
    return 1;
#else
    return 0;
#endif
}

/* 0 where these kernels give, on this machine, what plain loops give; run in a process of its own, since a wrong
 * instruction set kills. */
int qak_check(void) {
    enum { N = 40, K = 100, M = 7 };
    static float w[N * K], x[M * K], y[M * N], row[N][128];
    static uint8_t tiles[3 * 2176] __attribute__((aligned(64)));
    uint32_t seed = 1;
    for (int i = 0; i < N * K; i++) { seed = seed * 1664525u + 1013904223u; w[i] = (float)(seed >> 8) / 8388608.0f - 1.0f; }
    for (int i = 0; i < M * K; i++) { seed = seed * 1664525u + 1013904223u; x[i] = (float)(seed >> 8) / 8388608.0f - 1.0f; }
    for (int kind = 0; kind < 2; kind++) {
        matrix_t m = {tiles, NULL, N, K, kind, 4};
        if (qak_pack(w, N, K, kind, tiles, 2) || qak_product(&m, x, M, y, 2)) return 1;
        for (int n = 0; n < N; n++) unpack_row(&m, n, row[n]);
        for (int r = 0; r < M; r++)
            for (int n = 0; n < N; n++) {
                float exact = 0, off = 0;
                for (int k = 0; k < K; k++) {
                    exact += x[r * K + k] * row[n][k];
                    off += (w[n * K + k] - row[n][k]) * (w[n * K + k] - row[n][k]);
                }
                if (!(fabsf(y[r * N + n] - exact) < 0.25f) || !(off < K * (kind ? 0.01f : 0.0001f))) return 2;
            }
    }
    return 0;
}
