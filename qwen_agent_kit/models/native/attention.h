/* Attention of rows that share a key head, over a slab of keys and values [positions, dim].
 *
 * Keys are taken 32 at a time, from a multiple of 32 on, turned so that sixteen of them lie side by side; the running
 * maximum and sum are those of the online softmax. A query's result depends on its own position only, not on what is
 * computed beside it.
 */
#ifndef QAK_ATTENTION_H
#define QAK_ATTENTION_H

#include "simd.h"

#define SPAN 32
#define MOST_DIM 256
#define MOST_QUERIES 64

typedef struct {
    float keys[MOST_DIM * SPAN];    /* [dim][SPAN] */
    float values[SPAN * MOST_DIM];  /* [SPAN][dim filled up to 32] */
    float scores[4 * SPAN];
    float queries[MOST_QUERIES * MOST_DIM];
    float mixed[MOST_QUERIES * MOST_DIM];
    float most[MOST_QUERIES], total[MOST_QUERIES];
    int last[MOST_QUERIES]; /* the last position that a query sees */
} attention_t;

INLINE void widen_row(const void *slab, int wide, int64_t at, int dim, int filled, float *out) {
    int d = 0;
    if (wide == 4) {
        memcpy(out, (const float *)slab + at * dim, (size_t)dim * 4);
        d = dim;
    } else {
        const uint16_t *p = (const uint16_t *)slab + at * dim;
        for (; d + 16 <= dim; d += 16) store16(out + d, bf16x16(p + d));
        for (; d < dim; d++) out[d] = from_bf16(p[d]);
    }
    for (; d < filled; d++) out[d] = 0;
}

#ifdef QAK_AVX512
/* Sixteen rows of sixteen to sixteen columns. */
INLINE void turn16(__m512 *r) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; h++) {
            __m512d a = _mm512_castps_pd(t[i + h]), b = _mm512_castps_pd(t[i + h + 2]);
            r[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int c = 0; c < 4; c++) {
        t[c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
        t[4 + c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
        t[8 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
        t[12 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    }
    for (int c = 0; c < 4; c++) {
        r[c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0x88);
        r[8 + c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0xdd);
        r[4 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0x88);
        r[12 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0xdd);
    }
}
#endif

INLINE void load_span(attention_t *s, const void *keys, const void *values, int wide, int64_t from, int count, int dim,
                      int filled) {
#ifdef QAK_AVX512
    if (wide == 2 && dim % 32 == 0) { /* neighbours are turned in pairs, which halves the shuffles, then widened */
        const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
        for (int half = 0; half < SPAN; half += 16)
            for (int d = 0; d < dim; d += 32) {
                __m512 r[16];
                for (int i = 0; i < 16; i++) {
                    int64_t at = (from + (half + i < count ? half + i : 0)) * dim + d;
                    r[i] = _mm512_castsi512_ps(_mm512_loadu_si512((const uint16_t *)keys + at));
                }
                turn16(r);
                for (int i = 0; i < 16; i++) {
                    __m512i both = _mm512_castps_si512(r[i]);
                    float *to = s->keys + (d + 2 * i) * SPAN + half;
                    _mm512_storeu_si512(to, _mm512_slli_epi32(both, 16));
                    _mm512_storeu_si512(to + SPAN, _mm512_and_si512(both, high));
                }
            }
    } else if (dim % 16 == 0) {
        for (int half = 0; half < SPAN; half += 16)
            for (int d = 0; d < dim; d += 16) {
                __m512 r[16];
                for (int i = 0; i < 16; i++) {
                    int64_t at = (from + (half + i < count ? half + i : 0)) * dim + d;
                    r[i] = wide == 4 ? load16((const float *)keys + at) : bf16x16((const uint16_t *)keys + at);
                }
                turn16(r);
                for (int i = 0; i < 16; i++) store16(s->keys + (d + i) * SPAN + half, r[i]);
            }
    } else
#endif
    {
        float row[MOST_DIM];
        for (int i = 0; i < SPAN; i++) {
            widen_row(keys, wide, from + (i < count ? i : 0), dim, dim, row);
            for (int d = 0; d < dim; d++) s->keys[d * SPAN + i] = row[d];
        }
    }
    if (!values) return;
    for (int i = 0; i < count; i++) widen_row(values, wide, from + i, dim, filled, s->values + i * filled);
}

/* Scores of `queries` queries against the span; queries are a constant, so that all of it stays in registers. */
INLINE void score(attention_t *s, int q, int queries, int dim) {
    v16 sums[4][2];
    for (int i = 0; i < queries; i++) sums[i][0] = sums[i][1] = splat(0);
    for (int d = 0; d < dim; d++) {
        v16 a = keep16(load16(s->keys + d * SPAN)), b = keep16(load16(s->keys + d * SPAN + 16));
        for (int i = 0; i < queries; i++) {
            v16 x = splat(s->queries[(q + i) * MOST_DIM + d]);
            sums[i][0] = fma16(x, a, sums[i][0]);
            sums[i][1] = fma16(x, b, sums[i][1]);
        }
    }
    for (int i = 0; i < queries; i++) {
        store16(s->scores + i * SPAN, sums[i][0]);
        store16(s->scores + i * SPAN + 16, sums[i][1]);
    }
}

/* Scores to weights: what is not seen gets 0. Returns what the values so far are scaled by. */
INLINE float weigh(attention_t *s, int q, float *scores, int first, int last) {
    v16 a = between(load16(scores), first, last, -INFINITY), b = between(load16(scores + 16), first - 16, last - 16, -INFINITY);
    float most = most16(max16(a, b)), before = s->most[q];
    if (!(most > before)) most = before;
    a = between(exp16(a - splat(most)), first, last, 0.0f);
    b = between(exp16(b - splat(most)), first - 16, last - 16, 0.0f);
    store16(scores, a);
    store16(scores + 16, b);
    float shrink = before == most ? 1.0f : expf(before - most);
    s->total[q] = s->total[q] * shrink + sum16(a + b);
    s->most[q] = most;
    return shrink;
}

/* Two times sixteen values of position k, from column d on: as they lie where `raw` is given, else as they were widened. */
INLINE void pair16(const attention_t *s, const uint16_t *raw, int k, int filled, int d, v16 *a, v16 *b) {
    if (raw) {
        *a = bf16x16(raw + (int64_t)k * filled + d);
        *b = bf16x16(raw + (int64_t)k * filled + d + 16);
    } else {
        *a = keep16(load16(s->values + k * filled + d));
        *b = keep16(load16(s->values + k * filled + d + 16));
    }
}

INLINE void mix(attention_t *s, const uint16_t *raw, int q, int queries, int count, int filled, const float *shrink) {
    for (int d = 0; d < filled; d += 32) {
        v16 sums[4][2];
        for (int i = 0; i < queries; i++)
            for (int h = 0; h < 2; h++)
                sums[i][h] = load16(s->mixed + (q + i) * MOST_DIM + d + 16 * h) * splat(shrink[i]);
        for (int k = 0; k < count; k++) {
            v16 a, b;
            pair16(s, raw, k, filled, d, &a, &b);
            for (int i = 0; i < queries; i++) {
                v16 p = splat(s->scores[i * SPAN + k]);
                sums[i][0] = fma16(p, a, sums[i][0]);
                sums[i][1] = fma16(p, b, sums[i][1]);
            }
        }
        for (int i = 0; i < queries; i++)
            for (int h = 0; h < 2; h++) store16(s->mixed + (q + i) * MOST_DIM + d + 16 * h, sums[i][h]);
    }
}

INLINE void some_queries(attention_t *s, const uint16_t *raw, int q, int queries, int64_t from, int count, int dim, int filled, int window) {
    float shrink[4];
    score(s, q, queries, dim);
    for (int i = 0; i < queries; i++) {
        int64_t last = (int64_t)s->last[q + i] + 1 - from, first = window ? last - window : 0;
        if (last > count) last = count;
        if (last <= 0 || first >= count) { /* nothing of this span is seen */
            memset(s->scores + i * SPAN, 0, SPAN * sizeof(float));
            shrink[i] = 1.0f;
            continue;
        }
        shrink[i] = weigh(s, q + i, s->scores + i * SPAN, first > 0 ? (int)first : 0, (int)last);
    }
    mix(s, raw, q, queries, count, filled, shrink);
}

/* Ask for the next span while this one is computed: it is on other pages, where the processor does not look by itself. */
INLINE void ahead(const void *keys, const void *values, int64_t at, int64_t left, int64_t most) {
    if (left > most) left = most;
    for (int64_t i = 0; i < left; i += 64) {
        __builtin_prefetch((const char *)keys + at + i, 0, 2);
        __builtin_prefetch((const char *)values + at + i, 0, 2);
    }
}

/* Mix the values for `queries` queries in s->queries, whose last positions are in s->last, into s->mixed.
 * `wide` is the bytes of a value, `window` 0 for none. */
static void attend(attention_t *s, int queries, const void *keys, const void *values, int wide, int dim, int window) {
    const int filled = (dim + 31) / 32 * 32;
    const int direct = wide == 2 && filled == dim && queries <= 8; /* values that are read once or twice stay as they are */
    int64_t low = s->last[0], high = s->last[0];
    for (int q = 0; q < queries; q++) {
        if (s->last[q] < low) low = s->last[q];
        if (s->last[q] > high) high = s->last[q];
        s->most[q] = -INFINITY;
        s->total[q] = 0;
        memset(s->mixed + q * MOST_DIM, 0, (size_t)filled * sizeof(float));
    }
    int64_t from = window && low + 1 > window ? (low + 1 - window) / SPAN * SPAN : 0;
    for (; from <= high; from += SPAN) {
        int count = high + 1 - from < SPAN ? (int)(high + 1 - from) : SPAN, q = 0;
        const uint16_t *raw = direct ? (const uint16_t *)values + from * dim : NULL;
        ahead(keys, values, (from + SPAN) * dim * wide, (high + 1 - from - SPAN) * dim * wide, SPAN * dim * wide);
        load_span(s, keys, direct ? NULL : values, wide, from, count, dim, filled);
        for (; q + 4 <= queries; q += 4) some_queries(s, raw, q, 4, from, count, dim, filled, window);
        if (queries - q == 3) some_queries(s, raw, q, 3, from, count, dim, filled, window);
        else if (queries - q == 2) some_queries(s, raw, q, 2, from, count, dim, filled, window);
        else if (queries - q == 1) some_queries(s, raw, q, 1, from, count, dim, filled, window);
    }
    for (int q = 0; q < queries; q++) {
        v16 by = splat(1.0f / s->total[q]);
        for (int d = 0; d < filled; d += 16) store16(s->mixed + q * MOST_DIM + d, load16(s->mixed + q * MOST_DIM + d) * by);
    }
}

#endif
