/* Sixteen floats at a time: AVX-512 where the compiler targets it, vector extensions of gcc and clang elsewhere. */
#ifndef QAK_SIMD_H
#define QAK_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define QAK_AVX512 1
#include <immintrin.h>
#endif
#if defined(QAK_AVX512) && defined(__AVX512VNNI__)
#define QAK_VNNI 1
#endif

#define INLINE static inline __attribute__((always_inline))

#ifdef QAK_AVX512
typedef __m512 v16;
typedef __m512i w16;
INLINE v16 load16(const float *p) { return _mm512_loadu_ps(p); }
/* In a register from here on: gcc else loads it anew for each operation that takes it. */
INLINE v16 keep16(v16 v) { __asm__("" : "+v"(v)); return v; }
INLINE void store16(float *p, v16 v) { _mm512_storeu_ps(p, v); }
INLINE v16 splat(float x) { return _mm512_set1_ps(x); }
INLINE v16 max16(v16 a, v16 b) { return _mm512_max_ps(a, b); }
INLINE v16 fma16(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE float sum16(v16 v) { return _mm512_reduce_add_ps(v); }
INLINE float most16(v16 v) { return _mm512_reduce_max_ps(v); }
INLINE v16 bf16x16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE v16 half16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE v16 bytes16(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
/* Lanes from `first` to `last` (not included) are v, the others `other`. */
INLINE v16 between(v16 v, int first, int last, float other) {
    uint32_t low = first <= 0 ? 0xffff : first >= 16 ? 0 : (0xffffu << first) & 0xffff;
    uint32_t high = last >= 16 ? 0xffff : last <= 0 ? 0 : (1u << last) - 1;
    return _mm512_mask_blend_ps((__mmask16)(low & high), splat(other), v);
}
INLINE v16 exp16(v16 x) {
    x = _mm512_max_ps(splat(-87.3f), x); /* the second operand is kept where one is NaN */
    x = _mm512_min_ps(splat(88.3f), x);
    v16 n = _mm512_roundscale_ps(x * splat(1.44269504f), 8);
    v16 r = fma16(n, splat(-0.693359375f), x);
    r = fma16(n, splat(2.12194440e-4f), r);
    v16 p = splat(1.9875691500e-4f);
    p = fma16(p, r, splat(1.3981999507e-3f));
    p = fma16(p, r, splat(8.3334519073e-3f));
    p = fma16(p, r, splat(4.1665795894e-2f));
    p = fma16(p, r, splat(1.6666665459e-1f));
    p = fma16(p, r, splat(5.0000001201e-1f));
    p = fma16(p, r * r, r + splat(1.0f));
    return _mm512_scalef_ps(p, n);
}
#else
typedef float v16 __attribute__((vector_size(64)));
typedef int32_t w16 __attribute__((vector_size(64)));
INLINE v16 load16(const float *p) { v16 v; memcpy(&v, p, 64); return v; }
INLINE v16 keep16(v16 v) { return v; }
INLINE void store16(float *p, v16 v) { memcpy(p, &v, 64); }
INLINE v16 splat(float x) { v16 v; for (int i = 0; i < 16; i++) v[i] = x; return v; }
INLINE v16 max16(v16 a, v16 b) { for (int i = 0; i < 16; i++) a[i] = a[i] > b[i] ? a[i] : b[i]; return a; }
INLINE v16 fma16(v16 a, v16 b, v16 c) { return a * b + c; }
INLINE float sum16(v16 v) { float s = 0; for (int i = 0; i < 16; i++) s += v[i]; return s; }
INLINE float most16(v16 v) { float m = v[0]; for (int i = 1; i < 16; i++) m = v[i] > m ? v[i] : m; return m; }
INLINE v16 bf16x16(const uint16_t *p) {
    w16 w; for (int i = 0; i < 16; i++) w[i] = (int32_t)((uint32_t)p[i] << 16);
    v16 v; memcpy(&v, &w, 64); return v;
}
INLINE float half1(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    float f;
    if (rest < 0x400) { f = (float)rest * 5.9604644775390625e-8f; return sign ? -f : f; }
    bits = sign | ((rest + 0x1c000) << 13);
    if (rest >= 0x7c00) bits |= 0x7f800000;
    memcpy(&f, &bits, 4);
    return f;
}
INLINE v16 half16(const void *p) {
    uint16_t h[16]; memcpy(h, p, 32);
    v16 v; for (int i = 0; i < 16; i++) v[i] = half1(h[i]); return v;
}
INLINE v16 bytes16(const uint8_t *p) { v16 v; for (int i = 0; i < 16; i++) v[i] = p[i]; return v; }
INLINE v16 between(v16 v, int first, int last, float other) {
    for (int i = 0; i < 16; i++) v[i] = i >= first && i < last ? v[i] : other;
    return v;
}
INLINE v16 exp16(v16 x) { for (int i = 0; i < 16; i++) x[i] = expf(x[i]); return x; }
#endif

INLINE uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE float from_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

#endif
