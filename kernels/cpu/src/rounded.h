// Products of 8-bit weights with inputs that are rounded to 8 bits in stretches of kStretch8. Used for drafting only.
//
// A stretch's sum is an integer sum, so its order does not matter and it is the same on every instruction set: with
// VNNI if the processor has it, otherwise by 16-bit products. A row is rounded independently of the others. Stretches
// are added in order, in float32. linear.h describes the packing of weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "simd.h"

namespace outrider {

constexpr int kPanel = 32;
constexpr int kVectors = kPanel / kLanes;  // per panel
constexpr int kStretch8 = 128;             // inputs that share a scale
constexpr int kDot = 4;                    // inputs whose products are summed at once

#if defined(__AVX512F__)
constexpr int kMostRounded = 4;  // rows whose sums fit into registers
#else
constexpr int kMostRounded = 2;
#endif

inline int stretches8(int inputs) { return (inputs + kStretch8 - 1) / kStretch8; }

// One rounded row, padded with zeros to a multiple of kDot.
struct RoundedRow {
    const int8_t* values;
    const float* scales;  // per stretch
    const int32_t* sums;  // per stretch: the sum of its values

    int32_t four(int k) const {  // kDot values in one word
        int32_t word;
        std::memcpy(&word, values + k, sizeof word);
        return word;
    }
};

class RoundedRows {
public:
    template <class Input>
    void round(int rows, int inputs, const Input& x) {
        inputs_ = (inputs + kDot - 1) / kDot * kDot;
        stretches_ = stretches8(inputs);
        values_.assign(static_cast<size_t>(rows) * inputs_, 0);
        scales_.resize(static_cast<size_t>(rows) * stretches_);
        sums_.resize(static_cast<size_t>(rows) * stretches_);
        for (int row = 0; row < rows; ++row)
            for (int s = 0; s < stretches_; ++s) round_stretch(row, s, x(row), inputs);
    }

    RoundedRow row(int row) const {
        const size_t at = static_cast<size_t>(row) * stretches_;
        return {values_.data() + static_cast<size_t>(row) * inputs_, scales_.data() + at, sums_.data() + at};
    }

private:
    void round_stretch(int row, int stretch, const float* x, int inputs) {
        const int begin = stretch * kStretch8, end = std::min(begin + kStretch8, inputs);
        F16 magnitudes = zero();
        for (int k = begin; k < end; k += kLanes) {
            const F16 part = load_some(x + k, end - k);
            magnitudes = largest(magnitudes, largest(part, zero() - part));
        }
        const float most = max_lane(magnitudes), inverse = most > 0 ? 127 / most : 0;
        int8_t* values = values_.data() + static_cast<size_t>(row) * inputs_;
        int32_t sum = 0;
        for (int k = begin; k < end; k += kLanes) {
            float whole[kLanes];
            store(whole, nearest(load_some(x + k, end - k) * all(inverse)));
            int8_t bytes[kLanes];
            for (int i = 0; i < kLanes; ++i) bytes[i] = static_cast<int8_t>(static_cast<int32_t>(whole[i]));
            for (int i = 0; i < kLanes; ++i) sum += bytes[i];
            std::memcpy(values + k, bytes, std::min(end - k, kLanes));
        }
        scales_[static_cast<size_t>(row) * stretches_ + stretch] = most / 127;
        sums_[static_cast<size_t>(row) * stretches_ + stretch] = sum;
    }

    int inputs_ = 0, stretches_ = 0;
    std::vector<int8_t> values_;
    std::vector<float> scales_;
    std::vector<int32_t> sums_;
};

// Sums of one panel: lane i of vector v is output v * kLanes + i. Weights are stored with 128 added, which makes them
// unsigned, as one operand of VNNI must be. So the sums are initialized with the correction for that.
#if defined(__AVX512F__)

struct IntegerSums {
    __m512i v[kVectors];

    void begin(int32_t of_inputs) {
        for (int i = 0; i < kVectors; ++i) v[i] = _mm512_set1_epi32(-128 * of_inputs);
    }

    template <bool vnni>
    ALWAYS_INLINE void add(const uint8_t* weights, int32_t inputs) {
        const __m512i four = _mm512_set1_epi32(inputs);
        for (int i = 0; i < kVectors; ++i) {
            const __m512i own = _mm512_loadu_si512(weights + i * kLanes * kDot);
            if constexpr (vnni) {  // inline assembly: the compiler may not have VNNI enabled
                __m512i sums = v[i];
                asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(own), "v"(four));
                v[i] = sums;
            } else {
                const __m512i even = _mm512_madd_epi16(_mm512_and_si512(own, _mm512_set1_epi16(255)),
                                                       _mm512_srai_epi16(_mm512_slli_epi16(four, 8), 8));
                const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(own, 8), _mm512_srai_epi16(four, 8));
                v[i] = _mm512_add_epi32(v[i], _mm512_add_epi32(even, odd));
            }
        }
    }

    F16 vector(int i) const { return {_mm512_cvtepi32_ps(v[i])}; }
};

inline bool has_vnni() {
    static const bool yes = __builtin_cpu_supports("avx512vnni");
    return yes;
}

#elif defined(__AVX2__)

struct IntegerSums {
    __m256i v[2 * kVectors];

    void begin(int32_t of_inputs) {
        for (int i = 0; i < 2 * kVectors; ++i) v[i] = _mm256_set1_epi32(-128 * of_inputs);
    }

    template <bool vnni>
    ALWAYS_INLINE void add(const uint8_t* weights, int32_t inputs) {
        const __m256i four = _mm256_set1_epi32(inputs);
        for (int i = 0; i < 2 * kVectors; ++i) {
            const __m256i own = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + i * kLanes / 2 * kDot));
            const __m256i even = _mm256_madd_epi16(_mm256_and_si256(own, _mm256_set1_epi16(255)),
                                                   _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8));
            const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(own, 8), _mm256_srai_epi16(four, 8));
            v[i] = _mm256_add_epi32(v[i], _mm256_add_epi32(even, odd));
        }
    }

    F16 vector(int i) const { return {_mm256_cvtepi32_ps(v[2 * i]), _mm256_cvtepi32_ps(v[2 * i + 1])}; }
};

inline bool has_vnni() { return false; }

#else

struct IntegerSums {
    int32_t v[kPanel];

    void begin(int32_t of_inputs) { std::fill_n(v, kPanel, -128 * of_inputs); }

    template <bool vnni>
    void add(const uint8_t* weights, int32_t inputs) {
        int8_t four[kDot];
        std::memcpy(four, &inputs, kDot);
        for (int i = 0; i < kPanel; ++i)
            for (int k = 0; k < kDot; ++k) v[i] += weights[i * kDot + k] * four[k];
    }

    F16 vector(int half) const {
        return each([&](int i) { return static_cast<float>(v[half * kLanes + i]); });
    }
};

inline bool has_vnni() { return false; }

#endif

// The outputs of one panel, whose `weights` are [inputs / kDot][kPanel][kDot] and `scales` [stretches][kPanel], for R
// rows: sums [R][kVectors]. ask(byte) prefetches for the weight at offset `byte`.
template <int R, bool vnni, class Ask>
NEVER_INLINE void rounded_panel(const uint8_t* weights, const float* scales, int inputs, const RoundedRow* rows, const Ask& ask,
                                F16 (*sums)[kVectors]) {
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < kVectors; ++v) sums[r][v] = zero();
    for (int begin = 0, s = 0; begin < inputs; begin += kStretch8, ++s) {
        IntegerSums parts[R];
        for (int r = 0; r < R; ++r) parts[r].begin(rows[r].sums[s]);
        for (int k = begin; k < std::min(begin + kStretch8, inputs); k += kDot) {
            const long at = static_cast<long>(k) * kPanel;
            ask(at);
            for (int r = 0; r < R; ++r) parts[r].template add<vnni>(weights + at, rows[r].four(k));
        }
        for (int v = 0; v < kVectors; ++v) {
            const F16 scale = load(scales + s * kPanel + v * kLanes);
            for (int r = 0; r < R; ++r) sums[r][v] = fma(parts[r].vector(v), scale * all(rows[r].scales[s]), sums[r][v]);
        }
    }
}

}  // namespace outrider
