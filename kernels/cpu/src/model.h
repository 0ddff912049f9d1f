// Decoder layers over a round: a stage of the model, or an MTP module. One call, one team, barriers between steps.
#pragma once

#include "attention.h"
#include "expanded.h"
#include "experts.h"

namespace outrider {

constexpr int kAttentionRows = 256;  // whose queries are in the latent space at one time

struct Block {  // rows [begin, end) that attend in the absorbed form
    int begin, end;
    Walks walks;
};

// Room for what a layer makes, kept between rounds and grown when a round is larger.
class Room {
public:
    void grow(const Shape& shape, int rows, int pairs, long inner_stride) {
        const int inner = shape.heads * std::max(shape.query_head(), shape.value);
        const long block = std::min(rows, kAttentionRows);
        low_stride = (shape.query_rank ? shape.query_rank : shape.heads * shape.query_head()) + shape.latent();
        grow(normed, static_cast<long>(rows) * shape.hidden);
        grow(low, static_cast<long>(rows) * low_stride);
        grow(query_low, static_cast<long>(rows) * shape.query_rank);
        grow(query, static_cast<long>(rows) * shape.heads * shape.query_head());
        grow(heads, static_cast<long>(rows) * inner);
        grow(absorbed, block * shape.heads * shape.latent_stride());
        grow(gathered, block * shape.heads * shape.latent_stride());
        grow(router_scores, static_cast<long>(rows) * shape.experts);
        grow(chosen_weights, static_cast<long>(rows) * shape.chosen);
        if (chosen.size() < static_cast<size_t>(rows) * shape.chosen) chosen.resize(static_cast<size_t>(rows) * shape.chosen);
        grow(mlp_inner, static_cast<long>(pairs) * inner_stride);
        grow(mlp_outputs, static_cast<long>(pairs) * shape.hidden);
    }

    std::vector<float> normed, low, query_low, query, heads, absorbed, gathered;
    std::vector<float> router_scores, chosen_weights, mlp_inner, mlp_outputs;
    std::vector<int32_t> chosen, sequence_of_row;
    std::vector<Block> blocks;
    std::vector<Expansion> expansions;
    Parts parts;
    ExpandedRoom expanded;
    Groups by_expert;
    int low_stride = 0;

    static void grow(std::vector<float>& room, long size) {
        if (room.size() < static_cast<size_t>(size)) room.resize(size);
    }
};

inline int inner_stride(const LayerWeights* layers, int count) {
    int most = 0;
    for (int l = 0; l < count; ++l) {
        if (layers[l].routed) most = std::max(most, layers[l].experts[0].width);
        if (layers[l].shared || !layers[l].routed) most = std::max(most, layers[l].dense.width);
    }
    return most;
}

// What one team does to one round. Every method is called by every thread of it, and begins and ends in step.
class LayerRunner {
public:
    LayerRunner(const Team& team, const Shape& shape, const Rows& rows, Room& room, float* hidden, long inner)
        : team_(team), shape_(shape), rows_(rows), room_(room), hidden_(hidden), inner_stride_(inner), router_(shape) {}

    void run(const LayerWeights& layer, void* cache) {
        norm_rows(layer.input_norm);
        attend(layer.attention, cache);
        norm_rows(layer.post_norm);
        if (layer.routed)
            moe(layer);
        else
            dense(layer.dense);
    }

    void norm_rows(const float* weight) {
        each_row([&](int row) { rms_norm(residual(row), weight, shape_.hidden, shape_.eps, normed(row)); });
    }

private:
    template <class Work>
    void each_row(const Work& work) {
        const auto share = team_.share(rows_.rows);
        for (long row = share.begin; row < share.end; ++row) work(static_cast<int>(row));
        team_.barrier();
    }

    float* residual(int row) const { return hidden_ + static_cast<long>(row) * shape_.hidden; }
    float* normed(int row) const { return room_.normed.data() + static_cast<long>(row) * shape_.hidden; }
    float* low(int row) const { return room_.low.data() + static_cast<long>(row) * room_.low_stride; }

    void attend(const AttentionWeights& weights, void* cache) {
        product_of(team_, weights.down, rows_.rows, [&](int row) { return normed(row); },
                   [&](int row, int first, const F16* sums) { store_panel(low(row), first, weights.down.outputs, sums); });
        team_.barrier();
        each_row([&](int row) { finish_low(weights, row, cache); });
        if (shape_.query_rank) {
            const int rank = shape_.query_rank, width = weights.query_up.outputs;
            product_of(team_, weights.query_up, rows_.rows,
                       [&](int row) { return room_.query_low.data() + static_cast<long>(row) * rank; },
                       [&](int row, int first, const F16* sums) {
                           store_panel(room_.query.data() + static_cast<long>(row) * width, first, width, sums);
                       });
            team_.barrier();
        }
        for (const Block& block : room_.blocks) attend_block(weights, cache, block);
        for (const Expansion& expansion : room_.expansions) {
            if (shape_.cache_kind == kFloat32)
                expand(weights, static_cast<const float*>(cache), expansion);
            else
                expand(weights, static_cast<const uint16_t*>(cache), expansion);
        }
        const int width = weights.output.inputs;
        product_of(team_, weights.output, rows_.rows,
                   [&](int row) { return room_.heads.data() + static_cast<long>(row) * width; },
                   [&](int row, int first, const F16* sums) { add_panel(residual(row), first, shape_.hidden, sums); });
        team_.barrier();
    }

    // Norms a row's low-rank query, and writes its latent into the cache.
    void finish_low(const AttentionWeights& weights, int row, void* cache) {
        const int rank = shape_.query_rank;
        if (rank)
            rms_norm(low(row), weights.query_norm, rank, shape_.latent_eps, room_.query_low.data() + static_cast<long>(row) * rank);
        const int sequence = room_.sequence_of_row[row];
        if (rows_.slots[row] < rows_.write_from[sequence]) return;
        const long at = rows_.slot_of(shape_, sequence, rows_.slots[row]) * shape_.latent_stride();
        if (shape_.cache_kind == kFloat32) {
            make_latent(weights, row, static_cast<float*>(cache) + at);
        } else {
            float latent[kMostLatent];
            make_latent(weights, row, latent);
            uint16_t* slot = static_cast<uint16_t*>(cache) + at;
            for (int i = 0; i < shape_.latent(); ++i) slot[i] = as_bfloat16(latent[i]);
        }
    }

    void make_latent(const AttentionWeights& weights, int row, float* latent) {
        const float* key = low(row) + room_.low_stride - shape_.latent();
        rms_norm(key, weights.latent_norm, shape_.latent_rank, shape_.latent_eps, latent);
        rotate(key + shape_.latent_rank, shape_.rotary, rows_.positions[row], shape_.rope, latent + shape_.latent_rank);
    }

    const float* query(int row, int head) const {
        const float* queries = shape_.query_rank ? room_.query.data() + static_cast<long>(row) * shape_.heads * shape_.query_head() : low(row);
        return queries + head * shape_.query_head();
    }

    template <class Value>
    void expand(const AttentionWeights& weights, const Value* cache, const Expansion& expansion) {
        Expander<Value>(team_, shape_, rows_, expansion, room_.expanded)
            .run(weights, cache, [&](int row, int head) { return query(row, head); }, room_.heads.data());
    }

    void attend_block(const AttentionWeights& weights, void* cache, const Block& block) {
        const int begin = block.begin, count = block.end - begin, heads = shape_.heads;
        const long stride = shape_.latent_stride();
        float *absorbed = room_.absorbed.data(), *gathered = room_.gathered.data();
        const F16 scale = all(shape_.softmax_scale);
        products(
            team_, heads, [&](int head) -> const Linear& { return weights.key_up[head]; }, [&](int) { return count; },
            [&](int head, int row) { return query(begin + row, head); },
            [&](int head, int row, int first, const F16* sums) {
                const F16 scaled[kVectors] = {sums[0] * scale, sums[1] * scale};
                float* to = absorbed + (static_cast<long>(row) * heads + head) * stride;
                if (first == 0) finish_query(begin + row, head, to);
                store_panel(to, first, shape_.latent_rank, scaled);
            });
        team_.barrier();
        if (shape_.cache_kind == kFloat32)
            walk(static_cast<const float*>(cache), block);
        else
            walk(static_cast<const uint16_t*>(cache), block);
        team_.barrier();
        const int value = shape_.value;
        products(
            team_, heads, [&](int head) -> const Linear& { return weights.value_up[head]; }, [&](int) { return count; },
            [&](int head, int row) { return gathered + (static_cast<long>(row) * heads + head) * stride; },
            [&](int head, int row, int first, const F16* sums) {
                store_panel(room_.heads.data() + (static_cast<long>(begin + row) * heads + head) * value, first, value, sums);
            });
        team_.barrier();
    }

    // The rotary part of a query in the latent space, scaled, and zeros up to the stride.
    void finish_query(int row, int head, float* absorbed) {
        float* rope = absorbed + shape_.latent_rank;
        rotate(query(row, head) + shape_.nope, shape_.rotary, rows_.positions[row], shape_.rope, rope);
        for (int i = 0; i < shape_.rope; ++i) rope[i] *= shape_.softmax_scale;
        std::fill(rope + shape_.rope, absorbed + shape_.latent_stride(), 0.0f);
    }

    template <class Value>
    void walk(const Value* cache, const Block& block) {
        const Walks& walks = block.walks;
        Walker<Value> walker(shape_, rows_, cache, room_.absorbed.data(), room_.gathered.data(), block.begin, room_.parts);
        share_walks(team_, walks, walker);
        if (!walks.parts) return;
        team_.barrier();
        const auto share = team_.share(walks.parted);
        long query = 0;
        for (const Walk& walk : walks.all) {
            if (walk.part < 0 || walk.first_segment > 0) continue;
            for (int q = 0; q < walk.queries(); ++q, ++query)
                if (query >= share.begin && query < share.end) walker.join_parts(&walk, q);
        }
    }

    void dense(const MlpWeights& mlp) {
        product_of(team_, mlp.gate_up, rows_.rows, [&](int row) { return normed(row); },
                   [&](int row, int first, const F16* sums) { store_gated(inner(row), first, mlp.width, sums); });
        team_.barrier();
        product_of(team_, mlp.down, rows_.rows, [&](int row) { return inner(row); },
                   [&](int row, int first, const F16* sums) { add_panel(residual(row), first, shape_.hidden, sums); });
        team_.barrier();
    }

    float* inner(int row) const { return room_.mlp_inner.data() + row * inner_stride_; }

    void moe(const LayerWeights& layer) {
        each_row([&](int row) { route(layer, row); });
        if (team_.index == 0) room_.by_expert.build(shape_, layer, room_.chosen.data(), rows_.rows);
        team_.barrier();
        run_experts(team_, room_.by_expert, room_.normed.data(), shape_.hidden, room_.mlp_inner.data(), inner_stride_,
                    room_.mlp_outputs.data());
        each_row([&](int row) {
            combine(shape_, room_.by_expert, room_.chosen_weights.data(), room_.mlp_outputs.data(), row, rows_.rows,
                    layer.shared, residual(row));
        });
    }

    void route(const LayerWeights& layer, int row) {
        float* scores = room_.router_scores.data() + static_cast<long>(row) * shape_.experts;
        for (int panel = 0; panel < layer.router.panel_count(); ++panel)
            panel_product(layer.router, panel, 0, 1, [&](int) { return normed(row); },
                          [&](int, int first, const F16* sums) { store_panel(scores, first, shape_.experts, sums); });
        const long at = static_cast<long>(row) * shape_.chosen;
        router_(scores, layer.router_bias, {room_.chosen.data() + at, room_.chosen_weights.data() + at});
    }

    static constexpr int kMostLatent = 4096;
    const Team& team_;
    const Shape& shape_;
    const Rows& rows_;
    Room& room_;
    float* hidden_;
    long inner_stride_;
    Router router_;
};

inline void add_block(const Shape& shape, const Rows& rows, int begin, int end, int threads, Room& room) {
    room.blocks.push_back({begin, end, walks_of(shape, rows, begin, end, threads)});
    const long parts = room.blocks.back().walks.parts;
    room.parts.gathered.resize(std::max<size_t>(room.parts.gathered.size(), parts));
    Room::grow(room.parts.values, parts * shape.latent_stride());
}

// What the rows of a round have in common, worked out once by one thread.
inline void prepare(const Shape& shape, const Rows& rows, int threads, const LayerWeights* layers, int count, Room& room) {
    room.grow(shape, rows.rows, rows.rows * (shape.chosen + 1), inner_stride(layers, count));
    room.sequence_of_row.resize(rows.rows);
    for (int s = 0; s < rows.sequences; ++s)
        std::fill(room.sequence_of_row.begin() + rows.offsets[s], room.sequence_of_row.begin() + rows.offsets[s + 1], s);
    room.blocks.clear();
    room.expansions.clear();
    int begin = 0;  // of the rows that are in no block yet
    const auto close = [&](int end) {
        for (; begin < end; begin += kAttentionRows) add_block(shape, rows, begin, std::min(begin + kAttentionRows, end), threads, room);
        begin = end;
    };
    for (int s = 0; s < rows.sequences && shape.fast; ++s) {
        const int first = static_cast<int>(rows.offsets[s]), last = static_cast<int>(rows.offsets[s + 1]);
        if (last - first < kExpandRows) continue;
        close(first);
        room.expansions.push_back({s, first, last});
        begin = last;
    }
    close(rows.rows);
}

}  // namespace outrider
