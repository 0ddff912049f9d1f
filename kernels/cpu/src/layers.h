// Row-wise parts of a layer, and the shapes and weights that all parts use.
//
// Layout: a row's values are contiguous, in float32. A norm adds squares to kLanes sums, value i to sum i % kLanes, in
// the order of the values; then the tree of simd.h joins the sums. No sum crosses rows.
#pragma once

#include <cstdint>

#include "linear.h"
#include "sharding.h"

namespace outrider {

struct Shape {  // `heads` are this rank's
    int32_t hidden, heads, nope, rope, value, latent_rank, query_rank;  // query_rank 0: queries are one product
    int32_t experts, chosen, groups, chosen_groups, normalise;          // of the router
    int32_t block_size, cache_kind;                                     // cache_kind: WeightKind of the cache's values
    int32_t fast;     // 1: long prompt chunks use the expanded form, with another order of sums
    int32_t by_head;  // 1: a cache slot is the rotary key, the heads' keys, then their values; 0: a latent
    float routed_scale, eps, latent_eps, softmax_scale;
    const float* rotary;  // [positions][2][rope]: cosines, signed sines
    const Shard* shard;   // null: this rank has all of every layer

    int query_head() const { return nope + rope; }
    int latent() const { return latent_rank + rope; }
    int latent_stride() const { return (latent() + kLanes - 1) / kLanes * kLanes; }
    int key_of(int head) const { return rope + head * nope; }  // offset in a slot, by head
    int value_of(int head) const { return key_of(heads) + head * value; }

    // Sizes in values: of a slot, of a query, and of a query's weighted values. By head, all sizes are whole vectors.
    int slot_stride() const { return by_head ? value_of(heads) : latent_stride(); }
    int query_stride() const { return by_head ? query_head() : latent_stride(); }
    int gathered_stride() const { return by_head ? value : latent_stride(); }
    int gathered() const { return by_head ? value : latent_rank; }
};

struct AttentionWeights {
    Linear down, query_up, output;
    Linear key_value_up;              // [heads * (nope + value), latent_rank], if Shape::by_head; otherwise
    const Linear *key_up, *value_up;  // of each head: [latent_rank, nope] and [value, latent_rank]
    const Linear* key_expand;         // of each head: [nope, latent_rank], if Shape::fast
    const float *query_norm, *latent_norm;
};

struct MlpWeights {
    Linear gate_up, down;  // panels of gate_up: 16 gates, then their 16 ups
    int32_t width;         // this rank's width; down.inputs is that of all ranks
    int32_t unused;
};

// A layer's routed experts. The caller may change it between two calls, when experts move between slots.
//
// With whole experts spread over ranks, all ranks have equally many slots, numbered rank by rank, and an expert has a
// copy in one or more slots. Otherwise a slot is an expert.
struct RoutedExperts {
    const MlpWeights* slots;  // [count]; other ranks' slots have sizes only
    int32_t count, most_copies;
    const int32_t* copies;          // [experts] number of copies; null: a slot is an expert
    const int32_t* slots_of_expert;  // [experts][most_copies]
    int64_t* loads;                 // [experts] counts of rows that chose each; may be null

    // The slot for a row's choice of an expert: copies are used round robin by the row's position.
    int32_t slot_of(int32_t expert, int64_t position) const {
        return slots_of_expert[expert * static_cast<int64_t>(most_copies) + position % copies[expert]];
    }
};

struct LayerWeights {
    const float *input_norm, *post_norm;
    AttentionWeights attention;
    const RoutedExperts* routed;  // null: only `dense`
    int32_t shared, unused;       // 0 or 1: has a shared expert
    Linear router;
    const float* router_bias;
    MlpWeights dense;  // the dense layer's, or the shared expert
};

// One Round, or an MTP module's input pairs: R rows of S sequences.
struct Rows {
    int32_t rows, sequences;
    const int64_t *token_ids, *positions, *slots;  // [R]; slots are positions in the sequence's own cache
    const int64_t *offsets;                        // [S+1] into the rows
    const int64_t *write_from;                     // [S] slots before it are not written
    const int64_t *block_offsets, *block_ids;      // [S+1] into the ids
    const int64_t* first_slots;                    // [S] the first slot that the sequence's rows attend to

    long slot_of(const Shape& shape, int sequence, int64_t position) const {
        const int64_t block = block_ids[block_offsets[sequence] + position / shape.block_size];
        return block * shape.block_size + position % shape.block_size;
    }
};

inline void rms_norm(const float* x, const float* weight, int size, float eps, float* out) {
    F16 squares = zero();
    for (int i = 0; i < size; i += kLanes) {
        const F16 part = load_some(x + i, size - i);
        squares = fma(part, part, squares);
    }
    const F16 scale = all(1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps));
    for (int i = 0; i < size; i += kLanes)
        store_some(out + i, load_some(x + i, size - i) * scale * load_some(weight + i, size - i), size - i);
}

// Rotates interleaved pairs (2i, 2i+1) by their position's angles.
inline void rotate(const float* x, const float* rotary, int64_t position, int rope, float* out) {
    const float *cosines = rotary + position * 2 * rope, *sines = cosines + rope;
    for (int i = 0; i < rope; i += 2) {
        const float a = x[i], b = x[i + 1];
        out[i] = a * cosines[i] + b * sines[i];
        out[i + 1] = b * cosines[i + 1] + a * sines[i + 1];
    }
}

}  // namespace outrider
