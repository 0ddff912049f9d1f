// Drafting by recursion with an MTP module: all steps of all sequences in one call, drawn inside.
#pragma once

#include <utility>
#include <vector>

#include "model.h"
#include "sampling.h"

namespace outrider {

// A projection onto the vocabulary, or onto some of it; `linear` makes this rank's slice of the outputs.
struct Head {
    const Linear* linear;
    const int32_t* ids;  // the tokens that its outputs are, ascending; null: all, in order
    int outputs;         // of all ranks
};

// logits [rows][outputs] of x(row).
template <class Input>
void project(const Team& team, const Head& head, int rows, const Input& x, float* logits) {
    const int outputs = head.linear->outputs;
    product_of(team, *head.linear, rows, x, [&](int row, int first, const F16* sums) {
        store_panel(logits + static_cast<long>(row) * outputs, first, outputs, sums);
    });
    team.barrier();
}

// What the rows' tokens embed to, at to(row). A table [vocabulary][own width] holds this rank's columns. In step.
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

// What a sequence may say at a place: see Draw.
struct Allowed {
    const uint32_t* words;
    int64_t count;
};

// Asks whoever follows the grammars, by one thread, what sequence `which` may say at its draft `depth`.
using Remask = void (*)(int64_t which, int64_t depth, Allowed* allowed);

struct Going {  // a sequence that is drafted for
    int64_t pair;    // its last pair's row
    int64_t depth;   // drafts wanted
    int64_t drafts;  // where they go
};

// The module over one set of pairs after another.
class Module {
public:
    Module(const Shape& shape, const ModuleWeights& weights, Room& room) : shape_(shape), weights_(weights), room_(room) {}

    // By one thread, before `run` over as many pairs.
    void prepare(const Rows& pairs, int threads) {
        outrider::prepare(shape_, pairs, threads, weights_.layer, 1, room_);
        Room::grow(embedded_, static_cast<long>(pairs.rows) * shape_.hidden);
        Room::grow(joined_, static_cast<long>(pairs.rows) * shape_.hidden * 2);
        Room::grow(stream_, static_cast<long>(pairs.rows) * shape_.hidden);
    }

    // states [pairs][hidden] after the module's norm, from the pairs and the states `hidden` before them.
    void run(const Team& team, const Rows& pairs, const float* hidden, float* states) {
        const long width = shape_.hidden;
        const auto share = team.share(pairs.rows);
        embed_rows(team, shape_, pairs, weights_.embedding, weights_.embedding_kind, room_.exchanged,
                   [&](int row) { return embedded_.data() + row * width; });
        for (long row = share.begin; row < share.end; ++row) {
            float* joined = joined_.data() + row * 2 * width;
            rms_norm(embedded_.data() + row * width, weights_.embedding_norm, shape_.hidden, shape_.eps, joined);
            rms_norm(hidden + row * width, weights_.hidden_norm, shape_.hidden, shape_.eps, joined + width);
        }
        join(team, pairs.rows);
        LayerRunner(team, shape_, pairs, room_, stream_.data(), inner_stride(weights_.layer, 1)).run(*weights_.layer, weights_.cache);
        for (long row = share.begin; row < share.end; ++row)
            rms_norm(stream_.data() + row * width, weights_.norm, shape_.hidden, shape_.eps, states + row * width);
        team.barrier();
    }

private:
    // Embedding and state into one stream.
    void join(const Team& team, int rows) {
        const long width = shape_.hidden, stride = shape_.shard ? shape_.shard->cut(shape_.hidden).widest() : width;
        if (shape_.shard && team.index == 0) room_.exchanged.own(rows * stride);
        team.barrier();
        float* made = shape_.shard ? room_.exchanged.mine.data() : stream_.data();
        product_of(team, *weights_.join, rows, [&](int row) { return joined_.data() + row * 2 * width; },
                   [&](int row, int first, const F16* sums) {
                       store_panel(made + row * stride, first, weights_.join->outputs, sums);
                   });
        team.barrier();
        if (shape_.shard)
            gather_columns(team, shape_.shard->tensor, kEmbeddings, rows, made, static_cast<int>(stride), room_.exchanged,
                           Put::kStore, [&](int) { return shape_.shard->cut(shape_.hidden); },
                           [&](int row) { return stream_.data() + row * width; });
    }

    const Shape& shape_;
    const ModuleWeights& weights_;
    Room& room_;
    std::vector<float> embedded_, joined_, stream_;
};

// One call's drafting. Step j draws draft j of every sequence from its state, and feeds both to step j + 1.
//
// Of ranks with the same rows the first one draws, and the others take its tokens. Where other data groups draft
// beside this one, all go the same number of steps.
class Drafting {
public:
    Drafting(Module& module, const Shape& shape, const Head& head, const Rows& pairs, const float* hidden, float* states,
             int steps, Room& room, Remask remask)
        : module_(module), shard_(shape.shard), head_(head), fed_(pairs), hidden_(hidden), states_(states),
          width_(shape.hidden), steps_(steps), exchanged_(room.exchanged), remask_(remask) {}


    // By one thread. `draws[i]` is how sequence i draws its first draft.
    void prepare(const Going* going, int count, const Draw* draws, int threads) {
        threads_ = threads;
        going_ = going;
        draws_.assign(draws, draws + count);
        tokens_.resize(count);
        margins_.resize(count);
        logits_.resize(static_cast<size_t>(count) * head_.outputs);
        for (int i = 0; i < count; ++i) live_.push_back({i, going[i].pair});
        module_.prepare(fed_, threads);
    }

    // Where they go, `drafts` and their `margins`, is up to Going.
    void run(const Team& team, Sampling& sampling, int64_t* drafts, double* margins) {
        module_.run(team, fed_, hidden_, states_);
        for (int depth = 0; depth < steps_; ++depth) {
            draw(team, sampling);
            if (team.index == 0) advance(depth, drafts, margins);
            team.barrier();
            if (depth + 1 < steps_) module_.run(team, fed_, step_.hidden.data(), states_);
        }
    }

private:
    struct Live {
        int sequence;
        int64_t row;  // of the pairs fed last
    };

    // The pairs of one step, one for each sequence, and the states before them.
    struct Step {
        std::vector<int64_t> tokens, positions, slots, offsets{0}, write_from, block_offsets{0}, block_ids, first_slots;
        std::vector<float> hidden;

        void add(const Rows& from, int64_t row, int64_t token, const float* state, int width) {
            int owner = 0;
            while (from.offsets[owner + 1] <= row) ++owner;
            tokens.push_back(token);
            positions.push_back(from.positions[row] + 1);
            slots.push_back(from.slots[row] + 1);
            offsets.push_back(static_cast<int64_t>(tokens.size()));
            write_from.push_back(from.write_from[owner]);
            first_slots.push_back(from.first_slots[owner]);
            block_ids.insert(block_ids.end(), from.block_ids + from.block_offsets[owner],
                             from.block_ids + from.block_offsets[owner + 1]);
            block_offsets.push_back(static_cast<int64_t>(block_ids.size()));
            hidden.insert(hidden.end(), state, state + width);
        }

        Rows rows() const {
            const auto count = static_cast<int32_t>(tokens.size());
            return {count, count, tokens.data(), positions.data(), slots.data(), offsets.data(), write_from.data(),
                    block_offsets.data(), block_ids.data(), first_slots.data()};
        }
    };

    void draw(const Team& team, Sampling& sampling) {
        const int rows = static_cast<int>(live_.size()), outputs = head_.outputs;
        if (!rows) return;  // on all ranks of the tensor group
        make_logits(team, rows);
        if (!shard_ || shard_->tensor.rank == 0)
            sampling.run(team, rows, logits_.data(), outputs, outputs, head_.ids, draws_.data(), tokens_.data(), margins_.data());
        if (!shard_ || team.index != 0) return;
        std::vector<int64_t> all(static_cast<size_t>(rows) * shard_->tensor.size);
        exchanged_.gather(shard_->tensor, kDrafts, tokens_.data(), rows * sizeof(int64_t), -1, all.data());
        std::copy_n(all.begin(), rows, tokens_.begin());
    }

    // Whole rows of logits on whoever draws.
    void make_logits(const Team& team, int rows) {
        const auto state = [&](int i) { return states_ + live_[i].row * width_; };
        if (!shard_) return project(team, head_, rows, state, logits_.data());
        const Cut cut{head_.outputs, shard_->tensor.size, 1};
        const int own = head_.linear->outputs, widest = cut.widest();
        if (team.index == 0) exchanged_.own(static_cast<long>(rows) * widest);
        team.barrier();
        float* made = exchanged_.mine.data();
        product_of(team, *head_.linear, rows, state, [&](int row, int first, const F16* sums) {
            store_panel(made + static_cast<long>(row) * widest, first, own, sums);
        });
        team.barrier();
        gather_columns(team, shard_->tensor, kLogits, rows, made, widest, exchanged_, Put::kStore, [&](int) { return cut; },
                       [&](int row) { return logits_.data() + static_cast<long>(row) * head_.outputs; });
    }

    // Takes the tokens just drawn, and makes the next step's pairs of the sequences that go deeper.
    void advance(int depth, int64_t* drafts, double* margins) {
        Step next;
        std::vector<Live> deeper;
        for (size_t n = 0; n < live_.size(); ++n) {
            const Going& sequence = going_[live_[n].sequence];
            drafts[sequence.drafts + depth] = tokens_[n];
            margins[sequence.drafts + depth] = margins_[n];
            if (draws_[n].said) draws_[n].said[draws_[n].said_count()] = tokens_[n];
            if (sequence.depth <= depth + 1) continue;
            next.add(fed_, live_[n].row, tokens_[n], states_ + live_[n].row * width_, width_);
            draws_[deeper.size()] = draws_[n];
            step_on(draws_[deeper.size()], live_[n].sequence, depth + 1);
            deeper.push_back({live_[n].sequence, static_cast<int64_t>(deeper.size())});
        }
        live_ = std::move(deeper);
        step_ = std::move(next);
        fed_ = step_.rows();
        if (depth + 1 < steps_) module_.prepare(fed_, threads_);
    }

    void step_on(Draw& draw, int64_t sequence, int64_t depth) const {
        ++draw.position;
        if (!draw.constrained || !remask_) return;
        Allowed allowed{nullptr, 0};
        remask_(sequence, depth, &allowed);
        draw.allowed = allowed.words;
        draw.allowed_words = allowed.count;
    }

    Module& module_;
    const Shard* shard_;
    Head head_;
    Rows fed_;
    const float* hidden_;
    float* states_;
    long width_;
    int steps_;
    Exchanged& exchanged_;
    Remask remask_;
    int threads_ = 1;
    const Going* going_ = nullptr;
    std::vector<Live> live_;
    std::vector<Draw> draws_;
    std::vector<int64_t> tokens_;
    std::vector<double> margins_;
    std::vector<float> logits_;
    Step step_;
};

}  // namespace outrider
