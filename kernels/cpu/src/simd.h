// Vectors of 16 floats with the same results on every instruction set. F16 is one zmm, two ymm, or an array.
//
// Every operation rounds each lane separately, and every sum over lanes uses the same tree, so AVX-512 and AVX2 have
// the same bits. The plain path has no fused multiply-add, so its bits differ from theirs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace outrider {

constexpr int kLanes = 16;

#define ALWAYS_INLINE __attribute__((always_inline)) inline  // sums must stay in registers
#define NEVER_INLINE __attribute__((noinline))  // separate register allocation for a loop

#if defined(__AVX512F__)

struct F16 {
    __m512 v;
};

inline F16 zero() { return {_mm512_setzero_ps()}; }
inline F16 all(float x) { return {_mm512_set1_ps(x)}; }
inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 largest(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F16 least(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F16 nearest(F16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

inline F16 times_power_of_two(F16 a, F16 whole) {
    const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(whole.v), _mm512_set1_epi32(127)), 23);
    return {_mm512_mul_ps(a.v, _mm512_castsi512_ps(power))};
}

inline F16 load(const uint16_t* p) {  // bfloat16
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

inline F16 load(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

struct Words {  // 16 pairs of bfloat16
    __m512i v;
};
inline Words load_words(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline F16 low_halves(Words w) { return {_mm512_castsi512_ps(_mm512_slli_epi32(w.v, 16))}; }
inline F16 high_halves(Words w) {
    return {_mm512_castsi512_ps(_mm512_and_si512(w.v, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))};
}

inline F16 first_lanes(F16 a, int count) {  // lanes from `count` on become zero
    return {_mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), a.v)};
}

// Adds lanes i and i + 8, then i + 4, i + 2, i + 1.
inline float sum(F16 a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float max_lane(F16 a) { return _mm512_reduce_max_ps(a.v); }

// sum() of four vectors, by the same tree.
inline void sums_of_four(const F16* a, float* out) {
    const auto halves = [](__m512 x, __m512 y) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xEE));
    };
    const __m512 ab = halves(a[0].v, a[1].v), cd = halves(a[2].v, a[3].v);  // eight sums of each
    const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
    const __m512 two = _mm512_add_ps(four, _mm512_shuffle_ps(four, four, 0x4E));
    const __m512 one = _mm512_add_ps(two, _mm512_shuffle_ps(two, two, 0xB1));
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one)));
}

#elif defined(__AVX2__)

struct F16 {
    __m256 lo, hi;
};

inline F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F16 all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline F16 operator+(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F16 fma(F16 a, F16 b, F16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F16 largest(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F16 least(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F16 nearest(F16 a) {
    constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, how), _mm256_round_ps(a.hi, how)};
}

inline __m256 power_of_two(__m256 whole) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline F16 times_power_of_two(F16 a, F16 whole) {
    return {_mm256_mul_ps(a.lo, power_of_two(whole.lo)), _mm256_mul_ps(a.hi, power_of_two(whole.hi))};
}

inline __m256 widen_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline F16 load(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }

inline __m256 widen_int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline F16 load(const int8_t* p) { return {widen_int8(p), widen_int8(p + 8)}; }

struct Words {
    __m256i lo, hi;
};
inline Words load_words(const uint32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
inline F16 low_halves(Words w) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(w.lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w.hi, 16))};
}
inline F16 high_halves(Words w) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(w.lo, upper)), _mm256_castsi256_ps(_mm256_and_si256(w.hi, upper))};
}

inline F16 first_lanes(F16 a, int count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 lo = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes));
    const __m256 hi = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), lanes));
    return {_mm256_and_ps(a.lo, lo), _mm256_and_ps(a.hi, hi)};
}

inline float sum(F16 a) {
    const __m256 eight = _mm256_add_ps(a.lo, a.hi);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float max_lane(F16 a) {
    const __m256 eight = _mm256_max_ps(a.lo, a.hi);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline void sums_of_four(const F16* a, float* out) {
    for (int i = 0; i < 4; ++i) out[i] = sum(a[i]);
}

#else

struct F16 {
    float v[kLanes];
};

template <class Op>
inline F16 each(Op op) {
    F16 out;
    for (int i = 0; i < kLanes; ++i) out.v[i] = op(i);
    return out;
}

inline F16 zero() { return each([](int) { return 0.0f; }); }
inline F16 all(float x) { return each([=](int) { return x; }); }
inline F16 load(const float* p) { return each([=](int i) { return p[i]; }); }
inline void store(float* p, F16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline F16 operator+(F16 a, F16 b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
inline F16 operator-(F16 a, F16 b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
inline F16 operator*(F16 a, F16 b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
inline F16 operator/(F16 a, F16 b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
inline F16 fma(F16 a, F16 b, F16 c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline F16 largest(F16 a, F16 b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline F16 least(F16 a, F16 b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline F16 nearest(F16 a) { return each([&](int i) { return __builtin_nearbyintf(a.v[i]); }); }

inline float as_float(uint32_t bits) {
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}
inline F16 times_power_of_two(F16 a, F16 whole) {
    return each([&](int i) { return a.v[i] * as_float(static_cast<uint32_t>(static_cast<int>(whole.v[i]) + 127) << 23); });
}
inline F16 load(const uint16_t* p) { return each([=](int i) { return as_float(static_cast<uint32_t>(p[i]) << 16); }); }
inline F16 load(const int8_t* p) { return each([=](int i) { return static_cast<float>(p[i]); }); }

struct Words {
    uint32_t v[kLanes];
};
inline Words load_words(const uint32_t* p) {
    Words out;
    std::memcpy(out.v, p, sizeof out.v);
    return out;
}
inline F16 low_halves(Words w) { return each([&](int i) { return as_float(w.v[i] << 16); }); }
inline F16 high_halves(Words w) { return each([&](int i) { return as_float(w.v[i] & 0xFFFF0000u); }); }
inline F16 first_lanes(F16 a, int count) { return each([&](int i) { return i < count ? a.v[i] : 0.0f; }); }

inline float sum(F16 a) {
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a.v[i] = a.v[i] + a.v[i + half];
    return a.v[0];
}

inline float max_lane(F16 a) { return *std::max_element(a.v, a.v + kLanes); }

inline void sums_of_four(const F16* a, float* out) {
    for (int i = 0; i < 4; ++i) out[i] = sum(a[i]);
}

#endif

// Loads the first `count` lanes, the others are zero; reads nothing beyond.
inline F16 load_some(const float* p, int count) {
    if (count >= kLanes) return load(p);
    float lanes[kLanes] = {};
    std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(float));
    return load(lanes);
}

inline void store_some(float* p, F16 a, int count) {
    if (count >= kLanes) return store(p, a);
    float lanes[kLanes];
    store(lanes, a);
    std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(float));
}

// e^x within 2 units in the last place, with x clamped to -87..88.
inline F16 exp(F16 x) {
    x = least(largest(x, all(-87.0f)), all(88.0f));
    const F16 whole = nearest(x * all(1.44269504f));
    F16 rest = fma(whole, all(-0.693359375f), x);
    rest = fma(whole, all(2.12194440e-4f), rest);
    F16 value = all(1.9875691500e-4f);
    value = fma(value, rest, all(1.3981999507e-3f));
    value = fma(value, rest, all(8.3334519073e-3f));
    value = fma(value, rest, all(4.1665795894e-2f));
    value = fma(value, rest, all(1.6666665459e-1f));
    value = fma(value, rest, all(5.0000001201e-1f));
    value = fma(value, rest * rest, rest + all(1.0f));
    return times_power_of_two(value, whole);
}

inline F16 sigmoid(F16 x) { return all(1.0f) / (all(1.0f) + exp(zero() - x)); }

inline F16 silu(F16 x) { return x * sigmoid(x); }

}  // namespace outrider
