// Drafting by recursion with an MTP module: all steps of all sequences in one call, drawn inside.
#pragma once

#include <utility>
#include <vector>

#include "model.h"
#include "sampling.h"

namespace outrider {

// A projection onto the vocabulary, or onto some of it.
struct Head {
    const Linear* linear;
    const int32_t* ids;  // the tokens that its outputs are, ascending; null: all, in order
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

inline void embed(const Shape& shape, const void* table, int kind, int64_t token, float* out) {
    const long at = token * shape.hidden;
    for (int i = 0; i < shape.hidden; ++i)
        out[i] = kind == kFloat32 ? static_cast<const float*>(table)[at + i]
                                  : as_float32(static_cast<const uint16_t*>(table)[at + i]);
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
        for (long row = share.begin; row < share.end; ++row) {
            float *embedded = embedded_.data() + row * width, *joined = joined_.data() + row * 2 * width;
            embed(shape_, weights_.embedding, weights_.embedding_kind, pairs.token_ids[row], embedded);
            rms_norm(embedded, weights_.embedding_norm, shape_.hidden, shape_.eps, joined);
            rms_norm(hidden + row * width, weights_.hidden_norm, shape_.hidden, shape_.eps, joined + width);
        }
        team.barrier();
        product_of(team, *weights_.join, pairs.rows, [&](int row) { return joined_.data() + row * 2 * width; },
                   [&](int row, int first, const F16* sums) {
                       store_panel(stream_.data() + row * width, first, shape_.hidden, sums);
                   });
        team.barrier();
        LayerRunner(team, shape_, pairs, room_, stream_.data(), inner_stride(weights_.layer, 1)).run(*weights_.layer, weights_.cache);
        for (long row = share.begin; row < share.end; ++row)
            rms_norm(stream_.data() + row * width, weights_.norm, shape_.hidden, shape_.eps, states + row * width);
        team.barrier();
    }

private:
    const Shape& shape_;
    const ModuleWeights& weights_;
    Room& room_;
    std::vector<float> embedded_, joined_, stream_;
};

// One call's drafting. Step j draws draft j of every sequence from its state, and feeds both to step j + 1.
class Drafting {
public:
    Drafting(Module& module, const Head& head, const Rows& pairs, const float* hidden, float* states, int width, Remask remask)
        : module_(module), head_(head), fed_(pairs), hidden_(hidden), states_(states), width_(width), remask_(remask) {}

    // By one thread. `draws[i]` is how sequence i draws its first draft.
    void prepare(const Going* going, int count, const Draw* draws, int threads) {
        threads_ = threads;
        going_ = going;
        draws_.assign(draws, draws + count);
        tokens_.resize(count);
        margins_.resize(count);
        logits_.resize(static_cast<size_t>(count) * head_.linear->outputs);
        for (int i = 0; i < count; ++i) live_.push_back({i, going[i].pair});
        module_.prepare(fed_, threads);
    }

    // Where they go, `drafts` and their `margins`, is up to Going.
    void run(const Team& team, Sampling& sampling, int64_t* drafts, double* margins) {
        module_.run(team, fed_, hidden_, states_);
        for (int depth = 0; !live_.empty(); ++depth) {
            const int rows = static_cast<int>(live_.size()), outputs = head_.linear->outputs;
            project(team, head_, rows, [&](int i) { return states_ + live_[i].row * width_; }, logits_.data());
            sampling.run(team, rows, logits_.data(), outputs, outputs, head_.ids, draws_.data(), tokens_.data(), margins_.data());
            if (team.index == 0) advance(depth, drafts, margins);
            team.barrier();
            if (!live_.empty()) module_.run(team, fed_, step_.hidden.data(), states_);
        }
    }

private:
    struct Live {
        int sequence;
        int64_t row;  // of the pairs fed last
    };

    // The pairs of one step, one for each sequence, and the states before them.
    struct Step {
        std::vector<int64_t> tokens, positions, slots, offsets{0}, write_from, block_offsets{0}, block_ids;
        std::vector<float> hidden;

        void add(const Rows& from, int64_t row, int64_t token, const float* state, int width) {
            int owner = 0;
            while (from.offsets[owner + 1] <= row) ++owner;
            tokens.push_back(token);
            positions.push_back(from.positions[row] + 1);
            slots.push_back(from.slots[row] + 1);
            offsets.push_back(static_cast<int64_t>(tokens.size()));
            write_from.push_back(from.write_from[owner]);
            block_ids.insert(block_ids.end(), from.block_ids + from.block_offsets[owner],
                             from.block_ids + from.block_offsets[owner + 1]);
            block_offsets.push_back(static_cast<int64_t>(block_ids.size()));
            hidden.insert(hidden.end(), state, state + width);
        }

        Rows rows(int64_t first_slot) const {
            const auto count = static_cast<int32_t>(tokens.size());
            return {count, count, tokens.data(), positions.data(), slots.data(), offsets.data(), write_from.data(),
                    block_offsets.data(), block_ids.data(), first_slot};
        }
    };

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
        fed_ = step_.rows(fed_.first_slot);
        if (!live_.empty()) module_.prepare(fed_, threads_);
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
    Head head_;
    Rows fed_;
    const float* hidden_;
    float* states_;
    long width_;
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
