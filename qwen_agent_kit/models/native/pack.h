/* Floats to tiles, and the scale of a group of int4 that is off by least. */
#ifndef QAK_PACK_H
#define QAK_PACK_H

#include "gemm.h"

INLINE uint16_t to_half(float x) {
#ifdef QAK_AVX512
    return (uint16_t)_cvtss_sh(x, 0);
#else
    uint32_t bits, sign, rest;
    float rounded;
    memcpy(&bits, &x, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits < 0x38800000) { /* below the smallest normal number: whole multiples of 2^-24 */
        memcpy(&rounded, &bits, 4);
        return (uint16_t)(sign | (uint32_t)lrintf(rounded * 16777216.0f));
    }
    rest = bits + 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (rest >= 0x47800000 ? 0x7c00 : (rest - 0x38000000) >> 13));
#endif
}
INLINE float of_half(uint16_t h) {
#ifdef QAK_AVX512
    return _cvtsh_ss(h);
#else
    return half1(h);
#endif
}

/* sum(q x) and sum(q q) for q = x * inverse, rounded and held within -8 to 7. */
INLINE void dots(const float *x, float inverse, float *qx, float *qq) {
#ifdef QAK_AVX512
    v16 s = splat(0), t = splat(0);
    for (int i = 0; i < 32; i += 16) {
        v16 v = load16(x + i), q = _mm512_roundscale_ps(v * splat(inverse), 8);
        q = _mm512_min_ps(_mm512_max_ps(q, splat(-8)), splat(7));
        s = fma16(q, v, s);
        t = fma16(q, q, t);
    }
    *qx = sum16(s);
    *qq = sum16(t);
#else
    *qx = *qq = 0;
    for (int i = 0; i < 32; i++) {
        float q = rintf(x[i] * inverse);
        q = q < -8 ? -8 : q > 7 ? 7 : q;
        *qx += q * x[i];
        *qq += q * q;
    }
#endif
}

/* The scale for which 4 bits, signed, are off by the least squares: the largest value as -8 or as 7, a little more or
 * less, and for each the best scale for the integers that it gives. */
static float best_scale(const float *x) {
    float most = 0, best = 0, scale = 0;
    for (int i = 0; i < 32; i++) if (fabsf(x[i]) > fabsf(most)) most = x[i];
    if (most == 0) return 0;
    for (int end = 0; end < 2; end++)
        for (int i = -14; i <= 10; i++) {
            float inverse = (end ? 7.0f + 0.1f * (float)i : -8.0f - 0.1f * (float)i) / most, qx, qq;
            dots(x, inverse, &qx, &qq);
            if (qq > 0 && qx * qx > best * qq) {
                best = qx * qx / qq;
                scale = qx / qq;
            }
        }
    return scale;
}

static void pack_block(const float *w, int n, int k, int kind, int groups, int block, uint8_t *out) {
    const int bytes = tile_bytes(kind), offset = 1 << offset_bits(kind), least = kind == INT8 ? -127 : -8;
    uint8_t *halves = out + (size_t)groups * bytes;
    memset(out, 0, block_bytes(kind, groups));
    for (int g = 0; g < groups; g++, out += bytes)
        for (int r = 0; r < 16; r++) {
            float x[32] = {0}, scale, most = 0;
            int row = block * 16 + r, left = k - g * 32;
            if (row < n) memcpy(x, w + (size_t)row * k + g * 32, (size_t)(left < 32 ? left : 32) * sizeof(float));
            if (kind == INT8) {
                for (int i = 0; i < 32; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
                scale = most / 127.0f;
            } else scale = best_scale(x);
            uint16_t half = to_half(scale);
            scale = of_half(half);
            memcpy(halves + g * 32 + 2 * r, &half, 2);
            float inverse = scale != 0 ? 1.0f / scale : 0.0f;
            for (int i = 0; i < 32; i++) {
                int q = (int)lrintf(x[i] * inverse), j = i / 4;
                q = (q < least ? least : q >= offset ? offset - 1 : q) + offset;
                if (kind == INT8) out[j * 64 + r * 4 + i % 4] = (uint8_t)q;
                else out[j % 4 * 64 + r * 4 + i % 4] |= (uint8_t)(j < 4 ? q : q << 4);
            }
        }
}

#endif
