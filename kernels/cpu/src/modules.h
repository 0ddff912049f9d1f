// MTP modules: a token's embedding joined with the state before it, one decoder layer, a norm.
//
// Layout: a pair is [embedding, then state], each normed, in float32. Sums are in the order of linear.h and
// attention.h.
#pragma once

#include <vector>

#include "model.h"

namespace outrider {

// Writes the rows' embeddings to to(row). A table [vocabulary][own width] holds this rank's columns. All threads in
// step.
template <class To>
void embed_rows(const Team& team, const Shape& shape, const Rows& rows, const void* table, int kind, Exchanged& exchanged,
                const To& to) {
    const int width = shape.shard ? shape.shard->own_width(shape.hidden) : shape.hidden;
    const int stride = shape.shard ? shape.shard->cut(shape.hidden).widest() : 0;
    if (shape.shard && team.index == 0) exchanged.own(static_cast<long>(rows.rows) * stride);
    team.barrier();
    const auto share = team.share(rows.rows);
    for (long row = share.begin; row < share.end; ++row) {
        const long at = rows.token_ids[row] * width;
        float* out = shape.shard ? exchanged.mine.data() + row * stride : to(static_cast<int>(row));
        for (int i = 0; i < width; ++i)
            out[i] = kind == kFloat32 ? static_cast<const float*>(table)[at + i]
                                      : as_float32(static_cast<const uint16_t*>(table)[at + i]);
    }
    team.barrier();
    if (shape.shard)
        gather_columns(team, shape.shard->tensor, kEmbeddings, rows.rows, exchanged.mine.data(), stride, exchanged,
                       Put::kStore, [&](int) { return shape.shard->cut(shape.hidden); }, to);
}

struct ModuleWeights {
    const LayerWeights* layer;
    void* cache;
    const float *embedding_norm, *hidden_norm, *norm;
    const Linear* join;
    const void* embedding;
    int32_t embedding_kind;
    int32_t unused;
};

// The input pairs of a module whose states are needed. The others are only filled in, for later pairs.
struct Wanted {
    bool all;
    std::vector<int32_t> which;  // ascending; unused if all are wanted
    Rows rows;                   // the wanted rows
};

// Runs modules one after another, each over some pairs.
class Modules {
public:
    Modules(const Shape& shape, const ModuleWeights* weights, int count, Room& room)
        : shape_(shape), weights_(weights), count_(count), room_(room) {}

    int count() const { return count_; }

    // Call from one thread, before `run` of the same module over the same pairs.
    void prepare(int module, const Rows& pairs, const Wanted& wanted, int threads) {
        outrider::prepare(shape_, pairs, wanted.rows, threads, weights_[module].layer, 1, room_);
        Room::grow(embedded_, static_cast<long>(pairs.rows) * shape_.hidden);
        Room::grow(joined_, static_cast<long>(pairs.rows) * shape_.hidden * 2);
        Room::grow(stream_, static_cast<long>(pairs.rows) * shape_.hidden);
    }

    // Computes states [wanted][hidden] after the module's norm, from the pairs and the states `hidden` before them.
    void run(const Team& team, int module, const Rows& pairs, const Wanted& wanted, const float* hidden, float* states) {
        const ModuleWeights& weights = weights_[module];
        const long width = shape_.hidden;
        const auto share = team.share(pairs.rows);
        embed_rows(team, shape_, pairs, weights.embedding, weights.embedding_kind, room_.exchanged,
                   [&](int row) { return embedded_.data() + row * width; });
        for (long row = share.begin; row < share.end; ++row) {
            float* joined = joined_.data() + row * 2 * width;
            rms_norm(embedded_.data() + row * width, weights.embedding_norm, shape_.hidden, shape_.eps, joined);
            rms_norm(hidden + row * width, weights.hidden_norm, shape_.hidden, shape_.eps, joined + width);
        }
        join(team, *weights.join, pairs.rows);
        const long inner = inner_stride(weights.layer, 1);
        LayerRunner(team, shape_, pairs, room_, stream_.data(), inner).fill(*weights.layer, weights.cache);
        if (!wanted.all) {
            team.barrier();
            if (team.index == 0) keep_rows(shape_, wanted.which, stream_.data(), room_);
            team.barrier();
        }
        if (!wanted.rows.rows && !in_company()) return;
        LayerRunner(team, shape_, wanted.rows, room_, stream_.data(), inner).finish(*weights.layer, weights.cache);
        const auto own = team.share(wanted.rows.rows);
        for (long row = own.begin; row < own.end; ++row)
            rms_norm(stream_.data() + row * width, weights.norm, shape_.hidden, shape_.eps, states + row * width);
        team.barrier();
    }

private:
    // Whether other data groups' rows may need this rank's experts.
    bool in_company() const { return shape_.shard && shape_.shard->datas() > 1; }

    // Joins embedding and state into the residual stream.
    void join(const Team& team, const Linear& linear, int rows) {
        const long width = shape_.hidden, stride = shape_.shard ? shape_.shard->cut(shape_.hidden).widest() : width;
        if (shape_.shard && team.index == 0) room_.exchanged.own(rows * stride);
        team.barrier();
        float* made = shape_.shard ? room_.exchanged.mine.data() : stream_.data();
        product_of(team, linear, rows, [&](int row) { return joined_.data() + row * 2 * width; },
                   [&](int row, int first, const F16* sums) {
                       store_panel(made + row * stride, first, linear.outputs, sums);
                   });
        team.barrier();
        if (shape_.shard)
            gather_columns(team, shape_.shard->tensor, kEmbeddings, rows, made, static_cast<int>(stride), room_.exchanged,
                           Put::kStore, [&](int) { return shape_.shard->cut(shape_.hidden); },
                           [&](int row) { return stream_.data() + row * width; });
    }

    const Shape& shape_;
    const ModuleWeights* weights_;
    int count_;
    Room& room_;
    std::vector<float> embedded_, joined_, stream_;
};

}  // namespace outrider
