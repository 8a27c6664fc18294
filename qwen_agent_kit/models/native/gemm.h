/* Quantised matrices times quantised rows.
 *
 * A matrix [N, K] is cut into blocks of 16 rows, and those into tiles of 32 columns, N and K filled up with zeros. A tile
 * of int8 is 512 bytes, [8][16][4]: four neighbouring columns of each of the 16 rows, eight times; each byte is the value
 * plus 128. A tile of int4 is 256 bytes, [4][16][4]: the low half of a byte belongs to the first 16 columns, the high
 * half to the other 16. A block is its tiles, then 16 scales in half precision for each, then for int4 16 zeros of a byte
 * for each, filled up to whole cache lines, so that no load straddles two. A weight of int4 is (half - zero / 16) * scale.
 *
 * A quantised row of activations is [groups * 32] int8, then [groups] float scales, then [groups] corrections, which take
 * out what is added to the weights: minus 128 times the sum of the group in int32 for int8, minus a sixteenth of the sum
 * in float for int4. Stored unsigned times signed is what one VNNI instruction takes.
 *
 * Every output is summed group after group, whatever the number of rows, so a row's result does not depend on the batch.
 */
#ifndef QAK_GEMM_H
#define QAK_GEMM_H

#include "simd.h"

enum { INT8 = 0, INT4 = 1 };

#define MOST_ROWS 4 /* of which the sums stay in registers */

typedef struct {
    const uint8_t *data;
    const float *bias; /* [n] or NULL */
    int32_t n, k, kind, groups;
} matrix_t;

INLINE int tile_bytes(int kind) { return kind == INT8 ? 512 : 256; }
INLINE int held_bytes(int kind) { return kind == INT8 ? 544 : 304; } /* a tile, its scales and zeros */
INLINE size_t block_bytes(int kind, int groups) { return ((size_t)groups * held_bytes(kind) + 63) / 64 * 64; }
INLINE size_t row_bytes(int groups) { return ((size_t)groups * 40 + 63) / 64 * 64; }
INLINE int blocks_of(const matrix_t *m) { return (m->n + 15) / 16; }

/* Quantise 32 floats; `valid` of them count, the others are 0. */
INLINE void quantise_group(const float *x, int valid, int8_t *q, float *scale, uint8_t *correction, int kind) {
    float padded[32];
    if (valid < 32) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, x, (size_t)valid * sizeof(float));
        x = padded;
    }
#ifdef QAK_AVX512
    v16 a = load16(x), b = load16(x + 16);
    float most = most16(max16(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    float inverse = most > 0 ? 127.0f / most : 0.0f;
    __m512i ia = _mm512_cvtps_epi32(a * splat(inverse)), ib = _mm512_cvtps_epi32(b * splat(inverse));
    _mm_storeu_si128((__m128i *)q, _mm512_cvtsepi32_epi8(ia));
    _mm_storeu_si128((__m128i *)(q + 16), _mm512_cvtsepi32_epi8(ib));
    int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(ia, ib));
#else
    float most = 0;
    for (int i = 0; i < 32; i++) { float m = fabsf(x[i]); most = m > most ? m : most; }
    float inverse = most > 0 ? 127.0f / most : 0.0f;
    int32_t sum = 0;
    for (int i = 0; i < 32; i++) {
        int32_t v = (int32_t)lrintf(x[i] * inverse);
        v = v > 127 ? 127 : v < -127 ? -127 : v;
        q[i] = (int8_t)v;
        sum += v;
    }
#endif
    *scale = most / 127.0f;
    if (kind == INT8) {
        int32_t offset = -(sum * 128);
        memcpy(correction, &offset, 4);
    } else {
        float sixteenth = (float)sum * -0.0625f;
        memcpy(correction, &sixteenth, 4);
    }
}

/* A row of k floats; one that holds a NaN or an infinity gives NaN everywhere, so that it is seen. */
static void quantise_row(const float *x, int k, uint8_t *row, int groups, int kind) {
    int8_t *q = (int8_t *)row;
    float *scale = (float *)(row + (size_t)groups * 32);
    uint8_t *correction = (uint8_t *)(scale + groups);
    int i = 0;
    v16 odd = splat(0);
    for (; i + 16 <= k; i += 16) { v16 v = load16(x + i); odd = odd + (v - v); }
    float wrong = sum16(odd);
    for (; i < k; i++) wrong += x[i] - x[i];
    for (int g = 0; g < groups; g++) {
        int left = k - g * 32;
        quantise_group(x + g * 32, left < 32 ? left : 32, q + g * 32, scale + g, correction + g * 4, kind);
    }
    if (wrong != 0) for (int g = 0; g < groups; g++) scale[g] = wrong;
}

#ifdef QAK_VNNI
INLINE __m512i four(const uint8_t *p) {
    int32_t x;
    memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}

/* Ask for what this place of a stream of blocks reads `AHEAD` bytes later: the streams of a pair of blocks go on behind
 * the other one's end. */
#define AHEAD 2048
INLINE void ask(const uint8_t *block, size_t at, size_t stride, int wide) {
    size_t there = at + AHEAD < stride ? at + AHEAD : at + AHEAD + (size_t)(wide - 1) * stride;
    _mm_prefetch((const char *)(block + there), _MM_HINT_T0);
}

/* Sixteen columns of the result for `rows` rows, and `wide` times as many: sums[w * rows + r]. Of the weights 64 bytes
 * at a time are held, so that the sums of `rows` rows stay in registers. `first` is whether they are read for the first
 * time. */
INLINE void tile(const uint8_t *data, size_t stride, int kind, int groups, const uint8_t *const *x, int rows, int wide,
                 int first, v16 *sums) {
    const int bytes = tile_bytes(kind);
    const __m512i low = _mm512_set1_epi8(15);
    for (int i = 0; i < rows * wide; i++) sums[i] = splat(0);
    for (int g = 0; g < groups; g++) {
        __m512i whole[2 * MOST_ROWS];
        for (int r = 0; r < rows; r++)
            for (int w = 0; w < wide; w++)
                whole[w * rows + r] = kind == INT8 ? four(x[r] + (size_t)groups * 36 + (size_t)g * 4) : _mm512_setzero_si512();
        for (int j = 0; j < bytes / 64; j++) {
            const size_t at = (size_t)g * bytes + 64 * j;
            __m512i q[2], high[2];
            for (int w = 0; w < wide; w++) {
                if (first) ask(data + w * stride, at, stride, wide);
                q[w] = _mm512_loadu_si512(data + w * stride + at);
                if (kind == INT8) continue;
                high[w] = _mm512_and_si512(_mm512_srli_epi16(q[w], 4), low);
                q[w] = _mm512_and_si512(q[w], low);
            }
            for (int r = 0; r < rows; r++) {
                const uint8_t *a = x[r] + (size_t)g * 32 + 4 * j;
                for (int w = 0; w < wide; w++) {
                    whole[w * rows + r] = _mm512_dpbusd_epi32(whole[w * rows + r], q[w], four(a));
                    if (kind == INT4) whole[w * rows + r] = _mm512_dpbusd_epi32(whole[w * rows + r], high[w], four(a + 16));
                }
            }
        }
        for (int w = 0; w < wide; w++) {
            const uint8_t *scales = data + w * stride + (size_t)groups * bytes;
            if (first) { /* the next pair's, of which there are too few in a row to be fetched by themselves */
                if (g % 2 == 0) _mm_prefetch((const char *)(scales + wide * stride + (size_t)g * 32), _MM_HINT_T1);
                if (kind == INT4 && g % 4 == 0) _mm_prefetch((const char *)(scales + wide * stride + (size_t)groups * 32 + (size_t)g * 16), _MM_HINT_T1);
            }
            const v16 ws = half16(scales + (size_t)g * 32);
            const v16 zero = kind == INT4 ? bytes16(scales + (size_t)groups * 32 + (size_t)g * 16) : splat(0);
            for (int r = 0; r < rows; r++) {
                const float *rest = (const float *)(x[r] + (size_t)groups * 32) + g;
                v16 v = _mm512_cvtepi32_ps(whole[w * rows + r]);
                if (kind == INT4) v = fma16(zero, splat(rest[groups]), v);
                sums[w * rows + r] = fma16(v, ws * splat(rest[0]), sums[w * rows + r]);
            }
        }
    }
}
#else
INLINE void tile(const uint8_t *data, size_t stride, int kind, int groups, const uint8_t *const *x, int rows, int wide,
                 int first, v16 *sums) {
    const int bytes = tile_bytes(kind);
    (void)first;
    for (int w = 0; w < wide; w++)
        for (int r = 0; r < rows; r++) {
            const int8_t *a = (const int8_t *)x[r];
            const float *scale = (const float *)(x[r] + (size_t)groups * 32);
            const uint8_t *scales = data + w * stride + (size_t)groups * bytes;
            v16 sum = splat(0);
            for (int g = 0; g < groups; g++) {
                const uint8_t *p = data + w * stride + (size_t)g * bytes;
                int32_t acc[16], offset = 0;
                if (kind == INT8) memcpy(&offset, scale + groups + g, 4);
                for (int n = 0; n < 16; n++) acc[n] = offset;
                for (int j = 0; j < 8; j++)
                    for (int n = 0; n < 16; n++)
                        for (int i = 0; i < 4; i++) {
                            int at = (j % (kind == INT8 ? 8 : 4)) * 64 + n * 4 + i;
                            int value = kind == INT8 ? p[at] : j < 4 ? p[at] & 15 : p[at] >> 4;
                            acc[n] += value * a[g * 32 + j * 4 + i];
                        }
                v16 whole;
                for (int n = 0; n < 16; n++) ((float *)&whole)[n] = (float)acc[n];
                if (kind == INT4) whole = fma16(bytes16(scales + (size_t)groups * 32 + (size_t)g * 16), splat(scale[groups + g]), whole);
                sum = fma16(whole, half16(scales + (size_t)g * 32) * splat(scale[g]), sum);
            }
            sums[w * rows + r] = sum;
        }
}
#endif

/* y[r][n] = or += the sums of block b; y of row r is at out[r]. */
INLINE void put(const matrix_t *m, int b, const v16 *sums, int rows, float *const *out, int add) {
    int left = m->n - b * 16;
    for (int r = 0; r < rows; r++) {
        float *y = out[r] + b * 16, kept[16];
        v16 v = sums[r];
        if (left >= 16) {
            if (m->bias) v = v + load16(m->bias + b * 16);
            if (add) v = v + load16(y);
            store16(y, v);
            continue;
        }
        store16(kept, v);
        for (int n = 0; n < left; n++) {
            float value = kept[n] + (m->bias ? m->bias[b * 16 + n] : 0.0f);
            y[n] = add ? y[n] + value : value;
        }
    }
}

INLINE void few(const matrix_t *m, int b, int wide, int kind, const uint8_t *const *x, float *const *out, int rows,
                int first, int add) {
    const size_t stride = block_bytes(kind, m->groups);
    v16 sums[2 * MOST_ROWS];
    tile(m->data + (size_t)b * stride, stride, kind, m->groups, x, rows, wide, first, sums);
    put(m, b, sums, rows, out, add);
    if (wide == 2) put(m, b + 1, sums + rows, rows, out, add);
}

/* The loops are written out for each constant, so that sums and weights stay in registers. */
INLINE void block(const matrix_t *m, int b, int wide, int kind, const uint8_t *const *x, float *const *out, int rows, int add) {
    int first = 1;
    for (; rows >= MOST_ROWS; rows -= MOST_ROWS, x += MOST_ROWS, out += MOST_ROWS, first = 0) {
        if (first) few(m, b, wide, kind, x, out, MOST_ROWS, 1, add);
        else few(m, b, wide, kind, x, out, MOST_ROWS, 0, add);
    }
    if (rows == 3) few(m, b, wide, kind, x, out, 3, first, add);
    else if (rows == 2) few(m, b, wide, kind, x, out, 2, first, add);
    else if (rows == 1) few(m, b, wide, kind, x, out, 1, first, add);
}

#define BLOCKS(NAME, KIND)                                                                                           \
    static __attribute__((noinline)) void NAME(const matrix_t *m, int from, int to, const uint8_t *const *x,         \
                                               float *const *out, int rows, int add) {                               \
        for (; from + 2 <= to; from += 2) block(m, from, 2, KIND, x, out, rows, add);                                \
        if (from < to) block(m, from, 1, KIND, x, out, rows, add);                                                   \
    }
BLOCKS(multiply_int8, INT8)
BLOCKS(multiply_int4, INT4)

/* Blocks `from` to `to` (not included) of the product of `rows` rows; out[r] is where row r's result begins. */
INLINE void multiply(const matrix_t *m, int from, int to, const uint8_t *const *x, float *const *out, int rows, int add) {
    if (m->kind == INT8) multiply_int8(m, from, to, x, out, rows, add);
    else multiply_int4(m, from, to, x, out, rows, add);
}

/* Row `index` of the matrix in float32 [k]. */
static void unpack_row(const matrix_t *m, int64_t index, float *y) {
    const int bytes = tile_bytes(m->kind), n = (int)(index % 16);
    const uint8_t *p = m->data + (size_t)(index / 16) * block_bytes(m->kind, m->groups);
    const uint8_t *halves = p + (size_t)m->groups * bytes;
    for (int g = 0; g < m->groups; g++, p += bytes) {
        float scales[16], values[32], zero = 128;
        store16(scales, half16(halves + (size_t)g * 32));
        if (m->kind == INT4) zero = (float)halves[(size_t)m->groups * 32 + (size_t)g * 16 + n] * 0.0625f;
        for (int i = 0; i < 32; i++) {
            int j = i / 4, at = (m->kind == INT8 ? j : j % 4) * 64 + n * 4 + i % 4;
            int value = m->kind == INT8 ? p[at] : j < 4 ? p[at] & 15 : p[at] >> 4;
            values[i] = ((float)value - zero) * scales[n];
        }
        int left = m->k - g * 32;
        memcpy(y + g * 32, values, (size_t)(left < 32 ? left : 32) * sizeof(float));
    }
}

#endif
