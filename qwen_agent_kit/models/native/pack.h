/* Floats to tiles, and the line through a group of int4 that is off by least. */
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

/* What 32 values that are halves q = rint((x - low) * inverse), held within 0 to 15, sum up to. */
typedef struct { float q, qq, qx; } sums_t;
INLINE sums_t sums_of(const float *x, float low, float inverse) {
#ifdef QAK_AVX512
    v16 q1 = splat(0), q2 = splat(0), q3 = splat(0);
    for (int i = 0; i < 32; i += 16) {
        v16 v = load16(x + i), q = _mm512_roundscale_ps((v - splat(low)) * splat(inverse), 8);
        q = _mm512_min_ps(_mm512_max_ps(q, splat(0)), splat(15));
        q1 = q1 + q;
        q2 = fma16(q, q, q2);
        q3 = fma16(q, v, q3);
    }
    return (sums_t){sum16(q1), sum16(q2), sum16(q3)};
#else
    sums_t s = {0, 0, 0};
    for (int i = 0; i < 32; i++) {
        float q = rintf((x[i] - low) * inverse);
        q = q < 0 ? 0 : q > 15 ? 15 : q;
        s.q += q;
        s.qq += q * q;
        s.qx += q * x[i];
    }
    return s;
#endif
}

/* The scale and the value of 0 for which 32 halves are off by the least squares: a line through the values, for each of
 * several ways to spread the 15 steps over them. A value of 0 between -16 steps and 0 is what a zero can hold. */
static void best_line(const float *x, float *scale, float *low) {
    float least = 0, most = 0, all = 0, gained = -1;
    for (int i = 0; i < 32; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
        all += x[i];
    }
    *scale = *low = 0;
    if (most == least) return;
    for (int i = -12; i <= 12; i++) {
        sums_t s = sums_of(x, least, (15.0f + 0.1f * (float)i) / (most - least));
        float spread = 32 * s.qq - s.q * s.q;
        if (spread <= 0) continue;
        float step = (32 * s.qx - s.q * all) / spread, start = (all - step * s.q) / 32;
        if (start > 0) { start = 0; step = s.qx / s.qq; }
        /* Twice the product with the values, less the square of what stands for them: the larger, the less is off. */
        float gain = 2 * (step * s.qx + start * all) - (step * step * s.qq + 2 * step * start * s.q + 32 * start * start);
        if (gain > gained && step > 0) {
            gained = gain;
            *scale = step;
            *low = start;
        }
    }
}

static void pack_block(const float *w, int n, int k, int kind, int groups, int block, uint8_t *out) {
    const int bytes = tile_bytes(kind);
    uint8_t *halves = out + (size_t)groups * bytes, *zeros = halves + (size_t)groups * 32;
    memset(out, 0, block_bytes(kind, groups));
    for (int g = 0; g < groups; g++, out += bytes)
        for (int r = 0; r < 16; r++) {
            float x[32] = {0}, scale, most = 0, low = 0;
            int row = block * 16 + r, left = k - g * 32, zero, least = 1, last = 255;
            if (row < n) memcpy(x, w + (size_t)row * k + g * 32, (size_t)(left < 32 ? left : 32) * sizeof(float));
            if (kind == INT8) {
                for (int i = 0; i < 32; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
                scale = most / 127.0f;
            } else best_line(x, &scale, &low);
            uint16_t half = to_half(scale);
            scale = of_half(half);
            memcpy(halves + g * 32 + 2 * r, &half, 2);
            float inverse = scale != 0 ? 1.0f / scale : 0.0f, offset = 128;
            if (kind == INT4) {
                zero = (int)lrintf(fminf(-low * inverse * 16, 255));
                zeros[g * 16 + r] = (uint8_t)zero;
                offset = (float)zero * 0.0625f;
                least = 0;
                last = 15;
            }
            for (int i = 0; i < 32; i++) {
                int q = (int)lrintf(x[i] * inverse + offset), j = i / 4;
                q = q < least ? least : q > last ? last : q;
                if (kind == INT8) out[j * 64 + r * 4 + i % 4] = (uint8_t)q;
                else out[j % 4 * 64 + r * 4 + i % 4] |= (uint8_t)(j < 4 ? q : q << 4);
            }
        }
}

#endif
