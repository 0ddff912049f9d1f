// Attention in the expanded form, for a long chunk of a prompt: keys and values of all heads are computed from the
// latents once, and rows attend to those, which are much narrower. The order of arithmetic differs from the absorbed
// form, so it is used with numerics "fast" only.
//
// Layout: keys are [heads of a group][slots][nope, then rope], values [heads of a group][slots][value], padded to
// whole vectors. A query's sums run over the slots in order, chunk by chunk, as in attention.h.
#pragma once

#include <vector>

#include "attention.h"

namespace outrider {

constexpr int kExpandRows = 64;  // of one sequence: fewer are cheaper in the absorbed form
constexpr int kHeadGroup = 8;    // heads whose keys and values are in memory at once
constexpr int kExpandTile = 16;  // rows that a thread processes at once

struct Expansion {  // rows [begin, end) of a sequence
    int sequence, begin, end;
};

struct ExpandedRoom {
    std::vector<float> latents, keys, values, queries;
};

inline int whole_vectors(int size) { return (size + kLanes - 1) / kLanes * kLanes; }

template <class Value>
class Expander {
public:
    Expander(const Team& team, const Shape& shape, const Rows& rows, const Expansion& expansion, ExpandedRoom& room)
        : team_(team), shape_(shape), rows_(rows), expansion_(expansion), room_(room),
          context_(rows.slots[expansion.end - 1] + 1), key_stride_(whole_vectors(shape.query_head())),
          value_stride_(whole_vectors(shape.value)) {}

    // query(row, head) is the query after its projection; heads_out is [rows][heads * value].
    template <class Query>
    void run(const AttentionWeights& weights, const Value* cache, const Query& query, float* heads_out) {
        if (team_.index == 0) grow();
        team_.barrier();
        copy_latents(cache);
        team_.barrier();
        for (int first = 0; first < shape_.heads; first += kHeadGroup) {
            const int count = std::min(kHeadGroup, shape_.heads - first);
            make_keys_and_values(weights, first, count);
            make_queries(query, first, count);
            team_.barrier();
            attend(first, count, heads_out);
            team_.barrier();
        }
    }

private:
    long rows() const { return expansion_.end - expansion_.begin; }
    float* latent(long slot) const { return room_.latents.data() + slot * shape_.latent(); }
    float* key(int head, long slot) const { return room_.keys.data() + (head * context_ + slot) * key_stride_; }
    float* value(int head, long slot) const { return room_.values.data() + (head * context_ + slot) * value_stride_; }
    float* query_of(int head, long row) const { return room_.queries.data() + (head * rows() + row) * key_stride_; }

    void grow() {
        const auto room = [](std::vector<float>& of, long size) {
            if (of.size() < static_cast<size_t>(size)) of.resize(size);
        };
        const long heads = std::min(kHeadGroup, shape_.heads);
        room(room_.latents, context_ * shape_.latent());
        room(room_.keys, heads * context_ * key_stride_);
        room(room_.values, heads * context_ * value_stride_);
        room(room_.queries, heads * rows() * key_stride_);
    }

    void copy_latents(const Value* cache) {
        const auto share = team_.share(context_);
        for (long slot = share.begin; slot < share.end; ++slot) {
            const Value* from = cache + rows_.slot_of(shape_, expansion_.sequence, slot) * shape_.slot_stride();
            for (int i = 0; i < shape_.latent(); ++i) latent(slot)[i] = as_float32(from[i]);
        }
    }

    void make_keys_and_values(const AttentionWeights& weights, int first, int count) {
        const auto linear = [&](int job) -> const Linear& {
            return job < count ? weights.key_expand[first + job] : weights.value_up[first + job - count];
        };
        const auto store = [&](int job, int slot, int output, const F16* sums) {
            float* to = job < count ? key(job, slot) : value(job - count, slot);
            store_panel(to, output, job < count ? shape_.nope : shape_.value, sums);
        };
        products(team_, 2 * count, linear, [&](int) { return static_cast<int>(context_); },
                 [&](int, int slot) { return latent(slot); }, store);
        const auto share = team_.share(context_);
        for (long slot = share.begin; slot < share.end; ++slot)
            for (int head = 0; head < count; ++head)
                std::copy_n(latent(slot) + shape_.latent_rank, shape_.rope, key(head, slot) + shape_.nope);
    }

    template <class Query>
    void make_queries(const Query& query, int first, int count) {
        const auto share = team_.share(rows());
        for (long row = share.begin; row < share.end; ++row)
            for (int head = 0; head < count; ++head) {
                const float* from = query(static_cast<int>(expansion_.begin + row), first + head);
                float* to = query_of(head, row);
                std::copy_n(from, shape_.nope, to);
                rotate(from + shape_.nope, shape_.rotary, rows_.positions[expansion_.begin + row], shape_.rope, to + shape_.nope);
                for (int i = 0; i < shape_.query_head(); ++i) to[i] *= shape_.softmax_scale;
                std::fill(to + shape_.query_head(), to + key_stride_, 0.0f);
            }
    }

    void attend(int first, int count, float* heads_out) {
        std::vector<float> gathered(static_cast<size_t>(kExpandTile) * value_stride_);
        const long tiles = (rows() + kExpandTile - 1) / kExpandTile;
        for (long item = team_.index; item < tiles * count; item += team_.size) {  // neighbouring items have similar costs
            const long begin = item / count * kExpandTile;
            const int head = static_cast<int>(item % count);
            const int size = static_cast<int>(std::min<long>(kExpandTile, rows() - begin));
            attend_tile(head, begin, size, gathered.data());
            for (int r = 0; r < size; ++r)
                std::copy_n(gathered.data() + static_cast<long>(r) * value_stride_, shape_.value,
                            heads_out + ((expansion_.begin + begin + r) * shape_.heads + first + head) * shape_.value);
        }
    }

    void attend_tile(int head, long begin, int size, float* out) {
        Gathered now[kExpandTile];
        float kept[kExpandTile], *weights[kExpandTile], *out_rows[kExpandTile];
        const float* queries[kExpandTile];
        alignas(64) float weight_room[kExpandTile * kChunk];
        for (int r = 0; r < size; ++r) {
            weights[r] = weight_room + r * kChunk;
            out_rows[r] = out + static_cast<long>(r) * value_stride_;
            queries[r] = query_of(head, begin + r);
            std::fill_n(out_rows[r], value_stride_, 0.0f);
        }
        const int64_t* last = rows_.slots + expansion_.begin + begin;  // last slot that a row attends to
        for (long chunk = 0; chunk * kChunk <= last[size - 1]; ++chunk) {
            const float *keys[kChunk + kQuads], *values[kChunk];
            for (int i = 0; i < kChunk + kQuads; ++i) keys[i] = key(head, std::min<long>(chunk * kChunk + i, context_ - 1));
            for (int i = 0; i < kChunk; ++i) values[i] = value(head, std::min<long>(chunk * kChunk + i, context_ - 1));
            const int seen = static_cast<int>(std::min<int64_t>(last[size - 1] + 1 - chunk * kChunk, kChunk));
            for (int slot = 0; slot < seen; slot += kQuads)
                in_quads(size, [&](int r, auto q) {
                    float* scores[decltype(q)::value];
                    for (int i = 0; i < q; ++i) scores[i] = weights[r + i] + slot;
                    score<decltype(q)::value>(queries + r, keys + slot, {0, key_stride_ / kLanes, 0}, scores);
                });
            const auto from = static_cast<int>(std::clamp<int64_t>(rows_.first_slots[expansion_.sequence] - chunk * kChunk, 0, kChunk));
            for (int r = 0; r < size; ++r) {
                const auto to = static_cast<int>(std::clamp<int64_t>(last[r] + 1 - chunk * kChunk, 0, kChunk));
                kept[r] = weigh(weights[r], from, to, now[r]);
                if (from >= to) std::fill_n(weights[r], kChunk, 0.0f);
            }
            for (int at = 0; at < value_stride_; at += kLanes * (at + kQuads * kLanes <= value_stride_ ? kQuads : 1))
                in_quads(size, [&](int r, auto q) {
                    if (at + kQuads * kLanes <= value_stride_)
                        gather<decltype(q)::value, kQuads>(weights + r, values, from, seen, 0, at, kept + r, out_rows + r);
                    else
                        gather<decltype(q)::value, 1>(weights + r, values, from, seen, 0, at, kept + r, out_rows + r);
                });
        }
        for (int r = 0; r < size; ++r)
            for (int i = 0; i < value_stride_; i += kLanes)
                store(out_rows[r] + i, load(out_rows[r] + i) * all(1.0f / now[r].total));
    }

    const Team& team_;
    const Shape& shape_;
    const Rows& rows_;
    const Expansion& expansion_;
    ExpandedRoom& room_;
    long context_;
    int key_stride_, value_stride_;
};

}  // namespace outrider
