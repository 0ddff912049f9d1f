// y = x W^T over packed weights; each output row depends on its own input row only.
//
// An output is the sum of its products in the order of the inputs: one chain of fused multiply-adds, split into
// stretches of at most kStretch inputs that are joined in order. It does not depend on the number of rows or on which
// thread processes a panel. Vectors run over outputs, so no sum is split over lanes.
//
// Packed: panels of 32 outputs, each one stream. float32: [inputs][32]. bfloat16: [pairs of inputs][32] words, the
// first input of a pair in the low half. int8: [inputs][32], and a scale for every kStretch8 inputs, [stretches][32];
// for rounded inputs (rounded.h) the weights are [inputs / 4][32][4] with 128 added.
#pragma once

#include <algorithm>
#include <cmath>

#include "pool.h"
#include "rounded.h"
#include "simd.h"

namespace outrider {

constexpr int kStretch = 1024;  // inputs summed in one chain

#if defined(__AVX512F__)
constexpr int kMostRows = 8;  // rows whose sums and addresses fit into registers
#else
constexpr int kMostRows = 3;
#endif

// kRounded is for `pack` only: it packs a kInt8 whose inputs are rounded.
enum WeightKind : int32_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kRounded = 3 };

struct Linear {
    const void* panels;
    const float* scales;  // int8 only
    int32_t kind, outputs, inputs;
    int32_t rounds;  // 1: inputs are rounded to 8 bits; see rounded.h

    int panel_count() const { return (outputs + kPanel - 1) / kPanel; }
    int first_output(int panel) const { return panel * kPanel; }
};

inline int pairs(int inputs) { return (inputs + 1) / 2; }

inline long panel_bytes(const Linear& linear) {
    const long inputs = linear.inputs;
    if (linear.kind == kFloat32) return inputs * kPanel * sizeof(float);
    if (linear.kind == kBfloat16) return pairs(linear.inputs) * kPanel * static_cast<long>(sizeof(uint32_t));
    return linear.rounds ? (inputs + kDot - 1) / kDot * kDot * kPanel : inputs * kPanel;
}

// Addresses of panels at distance `stride` in bytes: the streams that are read, or prefetched.
struct Streams {
    const char* begin;
    long stride;

    const char* at(int panel, long byte) const { return begin + panel * stride + byte; }
};

inline Streams panels_from(const Linear& linear, int panel) {
    const long stride = panel_bytes(linear);
    return {static_cast<const char*>(linear.panels) + panel * stride, stride};
}

template <int N>
using Count = std::integral_constant<int, N>;

// Sums of R rows and P panels. A sum is a dependency chain. With one or two rows, several panels are processed at
// once, so that independent chains hide the latency.
template <int R, int P>
using Sums = F16[P][R][kVectors];

inline void prefetch(const void* p) {
#if defined(__GNUC__)
    __builtin_prefetch(p, 0, 1);
#endif
}

constexpr int kAhead = 2048;  // bytes of a weight stream to prefetch

// One stretch of P panels, inputs [begin, end). `asked` points `begin` inputs before the first address to prefetch.
template <int R, int P>
ALWAYS_INLINE void add_float32(Sums<R, P>& sums, const float* const* x, Streams read, Streams asked, int begin, int end) {
    constexpr long step = kPanel * sizeof(float);
    for (int k = begin; k < end; ++k) {
        for (int p = 0; p < P; ++p) {
            const float* w = reinterpret_cast<const float*>(read.at(p, k * step));
            prefetch(asked.at(p, k * step));
            prefetch(asked.at(p, k * step) + 64);
            for (int v = 0; v < kVectors; ++v) {
                const F16 weight = load(w + v * kLanes);
                for (int r = 0; r < R; ++r) sums[p][r][v] = fma(weight, all(x[r][k]), sums[p][r][v]);
            }
        }
    }
}

template <int R, int P>
ALWAYS_INLINE void add_bfloat16(Sums<R, P>& sums, const float* const* x, Streams read, Streams asked, int begin, int end) {
    constexpr long step = kPanel * sizeof(uint32_t);  // of two inputs
    const auto words = [&](int p, int k, int v) {
        return load_words(reinterpret_cast<const uint32_t*>(read.at(p, k / 2 * step)) + v * kLanes);
    };
    int k = begin;
    for (; k + 1 < end; k += 2) {
        for (int p = 0; p < P; ++p) {
            prefetch(asked.at(p, k / 2 * step));
            prefetch(asked.at(p, k / 2 * step) + 64);
            for (int v = 0; v < kVectors; ++v) {
                const Words both = words(p, k, v);
                const F16 even = low_halves(both), odd = high_halves(both);
                for (int r = 0; r < R; ++r) {
                    sums[p][r][v] = fma(even, all(x[r][k]), sums[p][r][v]);
                    sums[p][r][v] = fma(odd, all(x[r][k + 1]), sums[p][r][v]);
                }
            }
        }
    }
    if (k == end) return;
    for (int p = 0; p < P; ++p) {
        for (int v = 0; v < kVectors; ++v) {
            const F16 last = low_halves(words(p, k, v));
            for (int r = 0; r < R; ++r) sums[p][r][v] = fma(last, all(x[r][k]), sums[p][r][v]);
        }
    }
}

template <int R, int P>
ALWAYS_INLINE void add_int8(Sums<R, P>& sums, const float* const* x, Streams read, Streams asked, int begin, int end) {
    constexpr long step = kPanel;
    for (int k = begin; k < end; ++k) {
        for (int p = 0; p < P; ++p) {
            const int8_t* w = reinterpret_cast<const int8_t*>(read.at(p, k * step));
            prefetch(asked.at(p, k * step));
            for (int v = 0; v < kVectors; ++v) {
                const F16 weight = load(w + v * kLanes);
                for (int r = 0; r < R; ++r) sums[p][r][v] = fma(weight, all(x[r][k]), sums[p][r][v]);
            }
        }
    }
}

template <int R, int P, WeightKind kind>
ALWAYS_INLINE void add(Sums<R, P>& sums, const float* const* x, Streams read, Streams asked, int begin, int end) {
    if constexpr (kind == kFloat32) add_float32<R, P>(sums, x, read, asked, begin, end);
    if constexpr (kind == kBfloat16) add_bfloat16<R, P>(sums, x, read, asked, begin, end);
    if constexpr (kind == kInt8) add_int8<R, P>(sums, x, read, asked, begin, end);
}

template <int R, int P>
ALWAYS_INLINE void clear(Sums<R, P>& sums) {
    for (int p = 0; p < P; ++p)
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < kVectors; ++v) sums[p][r][v] = zero();
}

// The outputs of P panels from `panel` on for R rows. A stretch's sums are complete before they are added to the
// others. Near the end of these panels, the beginnings of the panels `next`, which follow, are prefetched.
template <int R, int P, WeightKind kind>
ALWAYS_INLINE void product(const Linear& linear, int panel, const float* const* x, Streams next, Sums<R, P>& sums) {
    constexpr int stretch = kind == kInt8 ? kStretch8 : kStretch;
    const int inputs = linear.inputs;
    const Streams read = panels_from(linear, panel);
    const int turn = std::max(inputs - static_cast<int>(kAhead * inputs / read.stride), 0) & ~1;
    const Streams ahead{read.begin + kAhead, read.stride};
    const Streams behind{next.begin - read.stride * turn / inputs, next.stride};
    const long scale_stride = static_cast<long>(stretches8(inputs)) * kPanel;
    const float* scales = linear.scales + panel * scale_stride;
    clear<R, P>(sums);
    for (int begin = 0; begin < inputs; begin += stretch) {
        const int end = std::min(begin + stretch, inputs), middle = std::clamp(turn, begin, end);
        Sums<R, P> part;
        clear<R, P>(part);
        add<R, P, kind>(part, x, read, ahead, begin, middle);
        add<R, P, kind>(part, x, read, behind, middle, end);
        for (int p = 0; p < P; ++p) {
            for (int v = 0; v < kVectors; ++v) {
                const float* own = scales + p * scale_stride + begin / stretch * kPanel + v * kLanes;
                const F16 scale = kind == kInt8 ? load(own) : all(1.0f);
                for (int r = 0; r < R; ++r) sums[p][r][v] = fma(part[p][r][v], scale, sums[p][r][v]);
            }
        }
    }
}

template <int R, int P = 1, class Each>
inline void at_once(const Linear& linear, int panel, int first_row, const float* const* x, Streams next, const Each& each) {
    Sums<R, P> sums;
    switch (linear.kind) {
        case kFloat32: product<R, P, kFloat32>(linear, panel, x, next, sums); break;
        case kBfloat16: product<R, P, kBfloat16>(linear, panel, x, next, sums); break;
        default: product<R, P, kInt8>(linear, panel, x, next, sums); break;
    }
    for (int p = 0; p < P; ++p)
        for (int r = 0; r < R; ++r) each(first_row + r, linear.first_output(panel + p), sums[p][r]);
}

// Calls `each(row, first output of the panel, sums[kVectors])` for rows [begin, end) of one panel; x(row) is a row's
// input.
template <class Rows, class Each>
void panel_product(const Linear& linear, int panel, int begin, int end, const Rows& x, Streams next, const Each& each) {
    const float* rows[kMostRows];
    for (int first = begin; first < end;) {
        const int count = std::min(end - first, kMostRows);
        for (int r = 0; r < count; ++r) rows[r] = x(first + r);
        switch (count) {
#if defined(__AVX512F__)
            case 8: at_once<8>(linear, panel, first, rows, next, each); break;
            case 7: at_once<7>(linear, panel, first, rows, next, each); break;
            case 6: at_once<6>(linear, panel, first, rows, next, each); break;
            case 5: at_once<5>(linear, panel, first, rows, next, each); break;
            case 4: at_once<4>(linear, panel, first, rows, next, each); break;
#endif
            case 3: at_once<3>(linear, panel, first, rows, next, each); break;
            case 2: at_once<2>(linear, panel, first, rows, next, each); break;
            default: at_once<1>(linear, panel, first, rows, next, each); break;
        }
        first += count;
    }
}

// Whether reading several panels at once is as fast as one after another. It is on Intel's cores, where this hides the
// latency of sums. AMD's Zen 4 reads a single stream up to 1.7 times faster, and its sums are not the bottleneck.
inline bool side_by_side() {
#if defined(__x86_64__) && defined(__GNUC__)
    static const bool yes = !__builtin_cpu_is("amd");
    return yes;
#else
    return true;
#endif
}

// The same for panels [panel, last); `after` is read next.
template <class Rows, class Each>
void panel_products(const Linear& linear, int panel, int last, int begin, int end, const Rows& x, Streams after, const Each& each) {
    const auto next = [&](int following) { return following < last ? panels_from(linear, following) : after; };
    const auto in_step = [&](auto rows_at_once, auto panels_at_once) {
        constexpr int rows = decltype(rows_at_once)::value, panels = decltype(panels_at_once)::value;
        if (end - begin != rows || !side_by_side()) return;
        const float* inputs[rows];
        for (int r = 0; r < rows; ++r) inputs[r] = x(begin + r);
        for (; panel + panels <= last; panel += panels)
            at_once<rows, panels>(linear, panel, begin, inputs, next(panel + panels), each);
    };
#if defined(__AVX512F__)
    in_step(Count<1>{}, Count<4>{});
    in_step(Count<2>{}, Count<2>{});
    in_step(Count<3>{}, Count<2>{});
    in_step(Count<4>{}, Count<2>{});
#endif
    in_step(Count<1>{}, Count<2>{});
    for (; panel < last; ++panel) panel_product(linear, panel, begin, end, x, next(panel + 1), each);
}

// The same for 8-bit weights and inputs rounded to 8 bits.
template <class Rows, class Each>
void rounded_products(const Linear& linear, int panel, int last, int begin, int end, const Rows& x, Streams after, const Each& each) {
    static thread_local RoundedRows rounded;
    if (panel >= last) return;
    rounded.round(end - begin, linear.inputs, [&](int row) { return x(begin + row); });
    const bool vnni = has_vnni();
    const long stride = panel_bytes(linear);
    for (; panel < last; ++panel) {
        const char* own = panels_from(linear, panel).begin;
        const char* next = panel + 1 < last ? own + stride : after.begin;
        const auto ask = [&](long byte) {
            const char* from = byte + kAhead < stride ? own + byte + kAhead : next + (byte + kAhead - stride);
            prefetch(from);
            prefetch(from + 64);
        };
        const float* scales = linear.scales + static_cast<long>(panel) * stretches8(linear.inputs) * kPanel;
        const auto rows_from = [&](int first, auto count) {
            constexpr int rows = decltype(count)::value;
            RoundedRow inputs[rows];
            for (int r = 0; r < rows; ++r) inputs[r] = rounded.row(first + r);
            F16 sums[rows][kVectors];
            const auto* weights = reinterpret_cast<const uint8_t*>(own);
            if (vnni)
                rounded_panel<rows, true>(weights, scales, linear.inputs, inputs, ask, sums);
            else
                rounded_panel<rows, false>(weights, scales, linear.inputs, inputs, ask, sums);
            for (int r = 0; r < rows; ++r) each(begin + first + r, linear.first_output(panel), sums[r]);
        };
        int first = 0;
        for (; first + kMostRounded <= end - begin; first += kMostRounded) rows_from(first, Count<kMostRounded>{});
        for (; first + 2 <= end - begin; first += 2) rows_from(first, Count<2>{});
        for (; first < end - begin; ++first) rows_from(first, Count<1>{});
    }
}

constexpr int kRowBlock = 96;  // rows that fit into a core's cache while panels are read
constexpr int kPanelCost = 3;  // cost of reading a panel, in rows

// Several products at once, split over the team by cost.
//
// Job j has the weights linear(j) and rows(j) input rows x(j, row). each(j, row, first output, sums[kVectors])
// receives the results, panel by panel.
template <class LinearOf, class RowsOf, class Input, class Each>
void products(const Team& team, int jobs, const LinearOf& linear, const RowsOf& rows, const Input& x, const Each& each) {
    long total = 0;
    const auto cost = [&](int job) {
        const long blocks = (rows(job) + kRowBlock - 1) / kRowBlock;
        return linear(job).panel_count() * (rows(job) + blocks * kPanelCost);
    };
    for (int job = 0; job < jobs; ++job) total += cost(job);
    const auto share = team.share(total);
    long at = 0;
    for (int job = 0; job < jobs && at < share.end; ++job) {
        if (at + cost(job) <= share.begin) {
            at += cost(job);
            continue;
        }
        const Linear& weights = linear(job);
        const Streams after = panels_from(job + 1 < jobs ? linear(job + 1) : weights, 0);
        const auto input = [&](int row) { return x(job, row); };
        const auto output = [&](int row, int first, const F16* sums) { each(job, row, first, sums); };
        for (int begin = 0; begin < rows(job); begin += kRowBlock) {
            const int end = std::min(begin + kRowBlock, rows(job)), panels = weights.panel_count();
            const long step = end - begin + kPanelCost;
            const auto panel_at = [&](long place) {  // the first panel that begins there or later
                return static_cast<int>(std::clamp<long>((place - at + step - 1) / step, 0, panels));
            };
            if (weights.rounds)
                rounded_products(weights, panel_at(share.begin), panel_at(share.end), begin, end, input, after, output);
            else
                panel_products(weights, panel_at(share.begin), panel_at(share.end), begin, end, input, after, output);
            at += panels * step;
        }
    }
}

// One product; each(row, first output of the panel, sums[kVectors]).
template <class Input, class Each>
void product_of(const Team& team, const Linear& linear, int rows, const Input& x, const Each& each) {
    products(
        team, 1, [&](int) -> const Linear& { return linear; }, [&](int) { return rows; },
        [&](int, int row) { return x(row); },
        [&](int, int row, int first, const F16* sums) { each(row, first, sums); });
}

// Store functions for a panel's outputs.
inline void store_panel(float* row, int first, int outputs, const F16* sums) {
    for (int v = 0, at = first; v < kVectors && at < outputs; ++v, at += kLanes)
        store_some(row + at, sums[v], outputs - at);
}

inline void add_panel(float* row, int first, int outputs, const F16* sums) {
    for (int v = 0, at = first; v < kVectors && at < outputs; ++v, at += kLanes) {
        const int count = std::min(outputs - at, kLanes);
        store_some(row + at, load_some(row + at, count) + sums[v], count);
    }
}

// Packing. Output i is row `order[i]` of `weights` [.., inputs], or zeros if that is -1; count = panels * 32.
inline float as_float32(float x) { return x; }
inline float as_float32(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
}

inline uint16_t as_bfloat16(uint16_t bits) { return bits; }
inline uint16_t as_bfloat16(float x) {  // to nearest, ties to even; weights are finite
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

template <class Value>
void pack(const Value* weights, const int32_t* order, int panels, int inputs, int kind, void* out, float* scales) {
    for (int panel = 0; panel < panels; ++panel) {
        for (int lane = 0; lane < kPanel; ++lane) {
            const int32_t row = order[panel * kPanel + lane];
            const Value* from = row < 0 ? nullptr : weights + static_cast<long>(row) * inputs;
            const auto value = [&](int k) { return from && k < inputs ? from[k] : Value(0); };
            if (kind == kFloat32) {
                float* to = static_cast<float*>(out) + static_cast<long>(panel) * inputs * kPanel + lane;
                for (int k = 0; k < inputs; ++k) to[static_cast<long>(k) * kPanel] = as_float32(value(k));
            } else if (kind == kBfloat16) {
                uint32_t* to = static_cast<uint32_t*>(out) + static_cast<long>(panel) * pairs(inputs) * kPanel + lane;
                for (int k = 0; k < inputs; k += 2)
                    to[static_cast<long>(k / 2) * kPanel] =
                        as_bfloat16(value(k)) | static_cast<uint32_t>(as_bfloat16(value(k + 1))) << 16;
            } else {
                const bool dots = kind == kRounded;
                const long whole = dots ? (inputs + kDot - 1) / kDot * kDot : inputs;
                int8_t* to = static_cast<int8_t*>(out) + panel * whole * kPanel;
                const auto place = [&](long k) { return dots ? (k / kDot * kPanel + lane) * kDot + k % kDot : k * kPanel + lane; };
                const int more = dots ? 128 : 0;
                for (long k = inputs; k < whole; ++k) to[place(k)] = static_cast<int8_t>(more);
                float* scale = scales + static_cast<long>(panel) * stretches8(inputs) * kPanel + lane;
                for (int begin = 0; begin < inputs; begin += kStretch8, scale += kPanel) {
                    const int end = std::min(begin + kStretch8, inputs);
                    float most = 0;
                    for (int k = begin; k < end; ++k) most = std::max(most, std::fabs(as_float32(value(k))));
                    *scale = most / 127;
                    const float inverse = most > 0 ? 127 / most : 0;
                    for (int k = begin; k < end; ++k)
                        to[place(k)] = static_cast<int8_t>(std::lrintf(as_float32(value(k)) * inverse) + more);
                }
            }
        }
    }
}

}  // namespace outrider
