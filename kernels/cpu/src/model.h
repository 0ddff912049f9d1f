// Decoder layers over a round: a stage of the model, or an MTP module. One call, one team, barriers between steps.
//
// Layout: the residual stream is [rows][hidden] in float32. A layer adds attention's output to it, then the output of
// the MLP or the experts. Sums within those are in the order of linear.h, attention.h and experts.h.
#pragma once

#include <cstring>
#include <vector>

#include "attention.h"
#include "expanded.h"
#include "experts.h"
#include "spread.h"

namespace outrider {

constexpr int kAttentionRows = 256;  // rows whose queries are in the latent space at once

struct Block {  // rows [begin, end) that use the absorbed form
    int begin, end;
    Walks walks;
};

// Memory for a layer's intermediate results, kept between rounds and grown for larger rounds.
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
        if (shape.shard) grow(all_heads, static_cast<long>(rows) * shape.shard->heads * shape.value);
        grow(absorbed, block * shape.heads * shape.query_stride());
        grow(gathered, block * shape.heads * shape.gathered_stride());
        grow(router_scores, static_cast<long>(rows) * shape.experts);
        grow(chosen_weights, static_cast<long>(rows) * shape.chosen);
        if (chosen.size() < static_cast<size_t>(rows) * shape.chosen) chosen.resize(static_cast<size_t>(rows) * shape.chosen);
        grow(mlp_inner, static_cast<long>(pairs) * inner_stride);
        grow(mlp_outputs, static_cast<long>(pairs) * shape.hidden);
    }

    std::vector<float> normed, low, query_low, query, heads, all_heads, absorbed, gathered;
    std::vector<float> router_scores, chosen_weights, mlp_inner, mlp_outputs;
    std::vector<int32_t> chosen, sequence_of_row;
    std::vector<Block> blocks;
    std::vector<Expansion> expansions;
    Parts parts;
    ExpandedRoom expanded;
    Groups by_expert;
    SpreadRoom spread;
    Exchanged exchanged;
    int low_stride = 0;

    static void grow(std::vector<float>& room, long size) {
        if (room.size() < static_cast<size_t>(size)) room.resize(size);
    }
};

inline int inner_stride(const LayerWeights* layers, int count) {
    int most = 0;
    for (int l = 0; l < count; ++l) {
        if (layers[l].routed) most = std::max(most, layers[l].routed->slots[0].down.inputs);
        if (layers[l].shared || !layers[l].routed) most = std::max(most, layers[l].dense.down.inputs);
    }
    return most;
}

// Runs a round's layers on one team. Every thread calls every method; a method begins and ends with all threads in
// step.
class LayerRunner {
public:
    LayerRunner(const Team& team, const Shape& shape, const Rows& rows, Room& room, float* hidden, long inner)
        : team_(team), shape_(shape), rows_(rows), room_(room), hidden_(hidden), inner_stride_(inner), router_(shape) {}

    void run(const LayerWeights& layer, void* cache) {
        fill(layer, cache);
        finish(layer, cache);
    }

    // Writes the rows' cache slots, which is all that later rows need.
    void fill(const LayerWeights& layer, void* cache) {
        norm_rows(layer.input_norm);
        make_low(layer.attention.down);
        each_row([&](int row) { finish_low(layer.attention, row, cache); });
        if (shape_.by_head) make_keys_and_values(layer.attention.key_value_up, cache);
    }

    // The rest of the layer, after `fill`.
    void finish(const LayerWeights& layer, void* cache) {
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
        if (shape_.query_rank) make_queries(weights.query_up);
        if (shape_.query_rank || shape_.by_head) team_.barrier();
        for (const Block& block : room_.blocks) attend_block(weights, cache, block);
        for (const Expansion& expansion : room_.expansions) {
            if (shape_.cache_kind == kFloat32)
                expand(weights, static_cast<const float*>(cache), expansion);
            else
                expand(weights, static_cast<const uint16_t*>(cache), expansion);
        }
        const int width = weights.output.inputs;
        const float* heads = whole_heads();
        add_product(weights.output, kAttention, [&](int row) { return heads + static_cast<long>(row) * width; });
    }

    // Low-rank queries (or, without them, this rank's own queries), then latents.
    void make_low(const Linear& down) {
        if (!shape_.shard) {
            product_of(team_, down, rows_.rows, [&](int row) { return normed(row); },
                       [&](int row, int first, const F16* sums) { store_panel(low(row), first, down.outputs, sums); });
            return team_.barrier();
        }
        const int own = shape_.query_rank ? 0 : shape_.heads * shape_.query_head();  // outputs that only this rank needs
        const Cut cut = shape_.shard->cut(room_.low_stride - own);
        const int stride = own + cut.widest();
        float* made = own_room(static_cast<long>(rows_.rows) * (stride + cut.widest()));
        float* shared = made + static_cast<long>(rows_.rows) * stride;
        product_of(team_, down, rows_.rows, [&](int row) { return normed(row); },
                   [&](int row, int first, const F16* sums) {
                       store_panel(made + static_cast<long>(row) * stride, first, down.outputs, sums);
                   });
        team_.barrier();
        each_row([&](int row) {
            const float* from = made + static_cast<long>(row) * stride;
            std::copy_n(from, own, low(row));
            std::copy_n(from + own, down.outputs - own, shared + static_cast<long>(row) * cut.widest());
        });
        gather_columns(team_, shape_.shard->tensor, kLatents, rows_.rows, shared, cut.widest(), room_.exchanged,
                       Put::kStore, [&](int) { return cut; }, [&](int row) { return low(row) + own; });
    }

    // All heads' attention outputs, [rows][all heads * value].
    const float* whole_heads() {
        if (!shape_.shard) return room_.heads.data();
        const int own = shape_.heads * shape_.value, all = shape_.shard->heads * shape_.value;
        const Cut cut{all, shape_.shard->tensor.size, shape_.value};
        gather_columns(team_, shape_.shard->tensor, kHeads, rows_.rows, room_.heads.data(), own, room_.exchanged, Put::kStore,
                       [&](int) { return cut; },
                       [&](int row) { return room_.all_heads.data() + static_cast<long>(row) * all; });
        return room_.all_heads.data();
    }

    // Adds a product of x(row) to the residual stream.
    template <class Input>
    void add_product(const Linear& linear, Purpose what, const Input& x) {
        if (!shape_.shard) {
            product_of(team_, linear, rows_.rows, x, [&](int row, int first, const F16* sums) {
                add_panel(residual(row), first, shape_.hidden, sums);
            });
            return team_.barrier();
        }
        const int stride = shape_.shard->cut(shape_.hidden).widest();
        float* made = own_room(static_cast<long>(rows_.rows) * stride);
        product_of(team_, linear, rows_.rows, x, [&](int row, int first, const F16* sums) {
            store_panel(made + static_cast<long>(row) * stride, first, linear.outputs, sums);
        });
        team_.barrier();
        add_columns(what, made, stride);
    }

    // Adds all ranks' columns to the residual stream; `made` [rows][stride] are this rank's.
    void add_columns(Purpose what, const float* made, int stride) {
        gather_columns(team_, shape_.shard->tensor, what, rows_.rows, made, stride, room_.exchanged, Put::kAdd,
                       [&](int) { return shape_.shard->cut(shape_.hidden); }, [&](int row) { return residual(row); });
    }

    // Send buffer for other ranks. All threads in step.
    float* own_room(long size) {
        if (team_.index == 0) room_.exchanged.own(size);
        team_.barrier();
        return room_.exchanged.mine.data();
    }

    // Norms a row's low-rank query and its latent, and rotates its rotary key. Writes latent and rotary key to the
    // cache; by head, keys and values take the latent's place.
    void finish_low(const AttentionWeights& weights, int row, void* cache) {
        const int rank = shape_.query_rank;
        if (rank)
            rms_norm(low(row), weights.query_norm, rank, shape_.latent_eps, room_.query_low.data() + static_cast<long>(row) * rank);
        float* latent = latent_of(row);
        float* rope = latent + shape_.latent_rank;
        rms_norm(latent, weights.latent_norm, shape_.latent_rank, shape_.latent_eps, latent);
        rotate(rope, shape_.rotary, rows_.positions[row], shape_.rope, rope);
        if (shape_.by_head)
            keep(row, cache, 0, shape_.rope, rope);
        else
            keep(row, cache, 0, shape_.latent(), latent);
    }

    float* latent_of(int row) const { return low(row) + room_.low_stride - shape_.latent(); }

    // Writes `count` values of a row to its cache slot, from `at` on, unless the slot is already written.
    void keep(int row, void* cache, int at, int count, const float* values) const {
        const int sequence = room_.sequence_of_row[row];
        if (rows_.slots[row] < rows_.write_from[sequence]) return;
        const long place = rows_.slot_of(shape_, sequence, rows_.slots[row]) * shape_.slot_stride() + at;
        if (shape_.cache_kind == kFloat32)
            std::copy_n(values, count, static_cast<float*>(cache) + place);
        else
            std::transform(values, values + count, static_cast<uint16_t*>(cache) + place,
                           [](float value) { return as_bfloat16(value); });
    }

    void make_queries(const Linear& up) {
        const int rank = shape_.query_rank, width = up.outputs;
        product_of(team_, up, rows_.rows, [&](int row) { return room_.query_low.data() + static_cast<long>(row) * rank; },
                   [&](int row, int first, const F16* sums) {
                       store_panel(room_.query.data() + static_cast<long>(row) * width, first, width, sums);
                   });
    }

    void make_keys_and_values(const Linear& up, void* cache) {
        const int width = shape_.slot_stride() - shape_.rope;
        product_of(team_, up, rows_.rows, [&](int row) { return latent_of(row); },
                   [&](int row, int first, const F16* sums) {
                       float panel[kPanel];
                       store_panel(panel, 0, kPanel, sums);
                       keep(row, cache, shape_.rope + first, std::min(kPanel, width - first), panel);
                   });
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
        if (shape_.by_head)
            attend_by_head(cache, block);
        else
            attend_absorbed(weights, cache, block);
    }

    // Each head attends to its own keys and values.
    void attend_by_head(void* cache, const Block& block) {
        const auto share = team_.share(block.end - block.begin);
        for (long row = block.begin + share.begin; row < block.begin + share.end; ++row)
            for (int head = 0; head < shape_.heads; ++head) {
                float* to = room_.absorbed.data() + ((row - block.begin) * shape_.heads + head) * shape_.query_stride();
                for (int i = 0; i < shape_.nope; ++i) to[i] = query(row, head)[i] * shape_.softmax_scale;
                turn_query(row, head, to + shape_.nope);
            }
        team_.barrier();
        walk(cache, block, room_.heads.data() + static_cast<long>(block.begin) * shape_.heads * shape_.value);
        team_.barrier();
    }

    // Projects queries into the latent space, and the attention output out of it.
    void attend_absorbed(const AttentionWeights& weights, void* cache, const Block& block) {
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
        walk(cache, block, gathered);
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

    // Appends a query's rotary part, scaled, and zeros up to the stride.
    void finish_query(int row, int head, float* absorbed) {
        turn_query(row, head, absorbed + shape_.latent_rank);
        std::fill(absorbed + shape_.latent(), absorbed + shape_.latent_stride(), 0.0f);
    }

    void turn_query(int row, int head, float* rope) const {
        rotate(query(row, head) + shape_.nope, shape_.rotary, rows_.positions[row], shape_.rope, rope);
        for (int i = 0; i < shape_.rope; ++i) rope[i] *= shape_.softmax_scale;
    }

    void walk(const void* cache, const Block& block, float* gathered) {
        if (shape_.cache_kind == kFloat32)
            walk_values(static_cast<const float*>(cache), block, gathered);
        else
            walk_values(static_cast<const uint16_t*>(cache), block, gathered);
    }

    template <class Value>
    void walk_values(const Value* cache, const Block& block, float* gathered) {
        const Walks& walks = block.walks;
        Walker<Value> walker(shape_, rows_, cache, room_.absorbed.data(), gathered, block.begin, room_.parts);
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
        const Cut cut = mlp_cut(mlp);
        const int stride = cut.widest();
        float* made = shape_.shard ? own_room(static_cast<long>(rows_.rows) * stride) : nullptr;
        product_of(team_, mlp.gate_up, rows_.rows, [&](int row) { return normed(row); },
                   [&](int row, int first, const F16* sums) {
                       store_gated(made ? made + static_cast<long>(row) * stride : inner(row), first, mlp.width, sums);
                   });
        team_.barrier();
        if (made)
            gather_columns(team_, shape_.shard->tensor, kInner, rows_.rows, made, stride, room_.exchanged, Put::kStore,
                           [&](int) { return cut; }, [&](int row) { return inner(row); });
        add_product(mlp.down, kOutputs, [&](int row) { return inner(row); });
    }

    Cut mlp_cut(const MlpWeights& mlp) const {
        return shape_.shard ? shape_.shard->cut(mlp.down.inputs) : Cut{mlp.down.inputs, 1, 1};
    }

    float* inner(int row) const { return room_.mlp_inner.data() + row * inner_stride_; }

    void moe(const LayerWeights& layer) {
        route(layer);
        if (team_.index == 0) group_rows(layer);
        team_.barrier();
        if (!shape_.shard)
            whole_experts(layer);
        else if (shape_.shard->spread)
            spread_experts(layer);
        else
            split_experts(layer);
    }

    // Counts the rows' choices, then replaces experts by slots.
    void group_rows(const LayerWeights& layer) {
        const RoutedExperts& routed = *layer.routed;
        int32_t* chosen = room_.chosen.data();
        for (long i = 0; i < routed_pairs() && routed.loads; ++i) ++routed.loads[chosen[i]];
        for (long i = 0; i < routed_pairs() && routed.copies; ++i)
            chosen[i] = routed.slot_of(chosen[i], rows_.positions[i / shape_.chosen]);
        room_.by_expert.build(shape_, layer, chosen, rows_.rows);
    }

    long routed_pairs() const { return static_cast<long>(rows_.rows) * shape_.chosen; }

    void whole_experts(const LayerWeights& layer) {
        const int hidden = shape_.hidden;
        gate_pairs(team_, room_.by_expert, [&](int row) { return normed(row); }, [&](int, int pair) { return inner(pair); });
        finish_pairs(team_, room_.by_expert, [&](int pair) { return inner(pair); },
                     [&](int, int pair) { return room_.mlp_outputs.data() + static_cast<long>(pair) * hidden; });
        each_row([&](int row) { sum_outputs(layer, row, hidden, Put::kAdd, residual(row)); });
    }

    // `out` receives the first `width` of this rank's columns.
    void sum_outputs(const LayerWeights& layer, int row, int width, Put put, float* out) {
        const float* shared = layer.shared ? room_.mlp_outputs.data() + (routed_pairs() + row) * width : nullptr;
        combine(shape_, room_.by_expert, room_.chosen_weights.data(), room_.mlp_outputs.data(), width, row, shared, put, out);
    }

    // Each expert is split over the ranks, like a dense layer.
    void split_experts(const LayerWeights& layer) {
        const Cut routed = mlp_cut(layer.routed->slots[0]), shared = layer.shared ? mlp_cut(layer.dense) : routed;
        const int stride = std::max(routed.widest(), shared.widest()), width = shape_.shard->own_width(shape_.hidden);
        const int pairs = static_cast<int>(room_.by_expert.row_of_pair.size());
        float* made = own_room(static_cast<long>(pairs) * stride);
        gate_pairs(team_, room_.by_expert, [&](int row) { return normed(row); },
                   [&](int, int pair) { return made + static_cast<long>(pair) * stride; });
        gather_columns(team_, shape_.shard->tensor, kInner, pairs, made, stride, room_.exchanged, Put::kStore,
                       [&](int pair) { return pair < routed_pairs() ? routed : shared; }, [&](int pair) { return inner(pair); });
        finish_pairs(team_, room_.by_expert, [&](int pair) { return inner(pair); },
                     [&](int, int pair) { return room_.mlp_outputs.data() + static_cast<long>(pair) * width; });
        add_summed(layer, width);
    }

    // Whole experts are distributed over the stage's ranks; the shared expert is split over the tensor group.
    void spread_experts(const LayerWeights& layer) {
        const int width = shape_.shard->own_width(shape_.hidden);
        SpreadExperts(team_, shape_, layer, room_.spread, room_.exchanged)
            .run(room_.by_expert, room_.normed.data(), room_.chosen.data(), rows_.rows, room_.mlp_outputs.data());
        if (layer.shared) shared_expert(layer.dense, room_.mlp_outputs.data() + routed_pairs() * width, width);
        add_summed(layer, width);
    }

    void shared_expert(const MlpWeights& mlp, float* outputs, int width) {
        const Cut cut = mlp_cut(mlp);
        const int stride = cut.widest();
        float* made = own_room(static_cast<long>(rows_.rows) * stride);
        product_of(team_, mlp.gate_up, rows_.rows, [&](int row) { return normed(row); },
                   [&](int row, int first, const F16* sums) {
                       store_gated(made + static_cast<long>(row) * stride, first, mlp.width, sums);
                   });
        team_.barrier();
        gather_columns(team_, shape_.shard->tensor, kInner, rows_.rows, made, stride, room_.exchanged, Put::kStore,
                       [&](int) { return cut; }, [&](int row) { return inner(row); });
        product_of(team_, mlp.down, rows_.rows, [&](int row) { return inner(row); },
                   [&](int row, int first, const F16* sums) {
                       store_panel(outputs + static_cast<long>(row) * width, first, width, sums);
                   });
        team_.barrier();
    }

    // Sums this rank's columns of the outputs, and adds all ranks' columns to the residual stream.
    void add_summed(const LayerWeights& layer, int width) {
        const int stride = shape_.shard->cut(shape_.hidden).widest();
        float* made = own_room(static_cast<long>(rows_.rows) * stride);
        each_row([&](int row) { sum_outputs(layer, row, width, Put::kStore, made + static_cast<long>(row) * stride); });
        add_columns(kOutputs, made, stride);
    }

    // Routes the rows. A thread processes its rows together, since the sums are short dependency chains.
    void route(const LayerWeights& layer) {
        const auto share = team_.share(rows_.rows);
        const auto scores = [&](int row) { return room_.router_scores.data() + static_cast<long>(row) * shape_.experts; };
        const Linear& router = layer.router;
        panel_products(
            router, 0, router.panel_count(), static_cast<int>(share.begin), static_cast<int>(share.end),
            [&](int row) { return normed(row); }, panels_from(router, 0),
            [&](int row, int first, const F16* sums) { store_panel(scores(row), first, shape_.experts, sums); });
        for (long row = share.begin; row < share.end; ++row) {
            const long at = row * shape_.chosen;
            router_(scores(static_cast<int>(row)), layer.router_bias, {room_.chosen.data() + at, room_.chosen_weights.data() + at});
        }
        team_.barrier();
    }

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
    Room::grow(room.parts.values, parts * shape.gathered_stride());
}

// Moves the results of `fill` for the rows `which`, ascending, to the front. Call from one thread.
inline void keep_rows(const Shape& shape, const std::vector<int32_t>& which, float* hidden, Room& room) {
    const auto move = [&](float* values, long width) {
        for (size_t row = 0; row < which.size(); ++row)
            std::memmove(values + static_cast<long>(row) * width, values + which[row] * width, width * sizeof(float));
    };
    move(hidden, shape.hidden);
    move(room.low.data(), room.low_stride);
    move(room.query_low.data(), shape.query_rank);
}

// Computes what all layers share, once, by one thread. All `rows` are filled in; only the rows `attending` are
// finished.
inline void prepare(const Shape& shape, const Rows& rows, const Rows& attending, int threads, const LayerWeights* layers,
                    int count, Room& room) {
    room.grow(shape, rows.rows, attending.rows * (shape.chosen + 1), inner_stride(layers, count));
    room.sequence_of_row.resize(rows.rows);
    for (int s = 0; s < rows.sequences; ++s)
        std::fill(room.sequence_of_row.begin() + rows.offsets[s], room.sequence_of_row.begin() + rows.offsets[s + 1], s);
    room.blocks.clear();
    room.expansions.clear();
    int begin = 0;  // first row that is in no block yet
    const auto close = [&](int end) {
        for (; begin < end; begin += kAttentionRows) add_block(shape, attending, begin, std::min(begin + kAttentionRows, end), threads, room);
        begin = end;
    };
    for (int s = 0; s < attending.sequences && shape.fast && !shape.by_head; ++s) {
        const int first = static_cast<int>(attending.offsets[s]), last = static_cast<int>(attending.offsets[s + 1]);
        if (last - first < kExpandRows) continue;
        close(first);
        room.expansions.push_back({s, first, last});
        begin = last;
    }
    close(attending.rows);
}

inline void prepare(const Shape& shape, const Rows& rows, int threads, const LayerWeights* layers, int count, Room& room) {
    prepare(shape, rows, rows, threads, layers, count, room);
}

}  // namespace outrider
