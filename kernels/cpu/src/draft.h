// Drafting with MTP modules, the last one recursively: all steps of all sequences in one call, sampling included.
//
// Layout: states are [rows][hidden] and logits [rows][outputs of the head], in float32. Sums are those of linear.h and
// attention.h. A row's draft depends on its own sequence only.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "modules.h"
#include "sampling.h"

namespace outrider {

// A projection onto the vocabulary or a part of it; `linear` computes this rank's slice of the outputs.
struct Head {
    const Linear* linear;
    const int32_t* ids;  // the token id of each output, ascending; null: all tokens in order
    int outputs;         // over all ranks
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

// Connects pairs with the states one slot before them, if there are several modules. A pair of a module after the
// first is a token and the previous module's state of the token before.
struct Chain {
    const int64_t* before;  // [pairs] the pair one slot before; `pairs` and above: index into `kept`
    const int64_t* reach;   // [pairs] how many modules process it
    const float* kept;      // [..][modules - 1][hidden] states from earlier calls
    const int64_t* lasts;   // [leaving] pairs whose states later calls need
    float* leaves;          // [leaving][modules - 1][hidden] output: those states
    int64_t leaving;
};

// The tokens that a sequence may have at a position: see Draw.
struct Allowed {
    const uint32_t* words;
    int64_t count;
};

// Callback, from one thread: the allowed tokens of sequence `which` at its draft `depth`.
using Remask = void (*)(int64_t which, int64_t depth, Allowed* allowed);

struct Going {  // a sequence that gets drafts
    int64_t pair;    // its last pair's row
    int64_t depth;   // most drafts
    int64_t drafts;  // index of its first draft in the output
};

// Ends drafting early. A sequence stops when another draft, accepted with probability `further` if all before it are,
// has an expected value below `each`. All sequences stop when a step's total expected value, beyond that, is below
// `step`. Twin: workers/drafting/stopping.py.
struct StopRule {
    double fixed, lead, bend, first, further, each, step;

    // The probability that a draft is accepted whose score leads by `margin`.
    double chance(double margin, bool is_first) const {
        const double capped = std::min(margin, 12.0);
        const double against = -fixed - lead * capped - bend * std::log1p(capped) - (is_first ? first : 0.0);
        return 1.0 / (1.0 + std::exp(std::min(against, 30.0)));
    }
};

// One call's drafting, pass by pass. Pass j runs module j over the pairs that it can process and the drafts before its
// own; its states sample draft j. After the last module's pass, that module continues alone: its input is its own
// state and the token that it sampled.
//
// Among ranks with the same rows, the first samples and decides which sequences stop; the others follow its result.
// With several data groups, all run the same number of steps.
class Drafting {
public:
    Drafting(Modules& modules, const Shape& shape, const Head& head, const Rows& pairs, const float* hidden, float* states,
             int steps, const Chain* chain, Room& room, Remask remask)
        : modules_(modules), shard_(shape.shard), head_(head), pairs_(pairs), fed_(pairs), hidden_(hidden), states_(states),
          width_(shape.hidden), steps_(steps), passes_(std::max(steps, modules.count())), chain_(chain),
          exchanged_(room.exchanged), remask_(remask) {}

    // Call from one thread. `draws[i]` are the sampling parameters of sequence i's first draft; `made[i]` receives its
    // number of drafts. `stop_rules` null: no early end.
    void prepare(const Going* going, int count, const Draw* draws, const StopRule* stop_rules, int64_t* made, int threads) {
        threads_ = threads;
        going_ = going;
        stop_rules_ = stop_rules;
        made_ = made;
        draws_.assign(draws, draws + count);
        tokens_.resize(count);
        margins_.resize(count);
        logits_.resize(static_cast<size_t>(count) * head_.outputs);
        for (int i = 0; i < count; ++i) live_.push_back({i, owner_of(going[i].pair), 0, going[i].pair, 1.0});
        wanted_ = {chain_ || count == pairs_.rows, {}, pairs_};
        if (!wanted_.all) want_last();
        if (chain_) {
            places_.resize(pairs_.rows);
            std::iota(places_.begin(), places_.end(), 0);
        }
        modules_.prepare(0, fed_, wanted_, threads);
    }

    // Going says where each sequence's `drafts` and `margins` are written.
    void run(const Team& team, Sampling& sampling, int64_t* drafts, double* margins) {
        for (int pass = 0; pass < passes_; ++pass) {
            modules_.run(team, module_of(pass), fed_, wanted_, pass ? step_.hidden.data() : hidden_, states_);
            if (pass < steps_) draw(team, pass, sampling);
            if (team.index == 0) advance(pass, drafts, margins);
            team.barrier();
            if (over(pass)) break;
        }
    }

private:
    // A sequence in progress. The last pass's input were its drafts from number `first` on; their states begin at
    // `place`. Number 0 is its last pair.
    struct Live {
        int sequence, owner;  // index among the sequences with drafts, and among the pairs' sequences
        int64_t first, place;
        double reach;  // the probability that all its drafts are accepted
    };

    // A pass's input rows, and the states before them.
    struct Step {
        std::vector<int64_t> tokens, positions, slots, offsets{0}, write_from, block_offsets{0}, block_ids, first_slots;
        std::vector<float> hidden;

        void add(int64_t token, int64_t slot, int module, const float* state, long width) {
            tokens.push_back(token);
            positions.push_back(slot - 1 - module);
            slots.push_back(slot);
            hidden.insert(hidden.end(), state, state + width);
        }

        // Assigns the rows added since the last call to sequence `owner` of `from`.
        void close(const Rows& from, int owner, int module) {
            if (static_cast<int64_t>(tokens.size()) == offsets.back()) return;
            offsets.push_back(static_cast<int64_t>(tokens.size()));
            write_from.push_back(from.write_from[owner]);
            first_slots.push_back(from.first_slots[owner] + module);
            block_ids.insert(block_ids.end(), from.block_ids + from.block_offsets[owner],
                             from.block_ids + from.block_offsets[owner + 1]);
            block_offsets.push_back(static_cast<int64_t>(block_ids.size()));
        }

        Rows rows() const {
            return {static_cast<int32_t>(tokens.size()), static_cast<int32_t>(write_from.size()), tokens.data(),
                    positions.data(), slots.data(), offsets.data(), write_from.data(), block_offsets.data(),
                    block_ids.data(), first_slots.data()};
        }
    };

    // Only the states of pairs with drafts after them are needed.
    void want_last() {
        std::vector<Live*> by_pair;
        for (Live& live : live_) by_pair.push_back(&live);
        std::sort(by_pair.begin(), by_pair.end(), [](const Live* a, const Live* b) { return a->place < b->place; });
        for (Live* live : by_pair) {
            step_.add(pairs_.token_ids[live->place], pairs_.slots[live->place], 0, nullptr, 0);
            step_.close(pairs_, live->owner, 0);
            wanted_.which.push_back(static_cast<int32_t>(live->place));
            live->place = static_cast<int64_t>(wanted_.which.size()) - 1;
        }
        wanted_.rows = step_.rows();
    }

    // Whether no pass with input rows is left, on any of the ranks that draft together.
    bool over(int pass) const {
        return live_.empty() && pass + 1 >= modules_.count() && (!shard_ || shard_->datas() == 1);
    }

    int module_of(int pass) const { return std::min(pass, modules_.count() - 1); }

    int owner_of(int64_t pair) const {
        return static_cast<int>(std::upper_bound(pairs_.offsets + 1, pairs_.offsets + pairs_.sequences, pair) - pairs_.offsets - 1);
    }

    // The last pass's state of a sequence's draft; number 0: of its last pair.
    const float* state_of(const Live& live, int64_t draft) const {
        const int64_t place = draft >= live.first ? live.place + draft - live.first : places_[going_[live.sequence].pair];
        return states_ + place * width_;
    }

    // Samples draft `pass` from each sequence's last state.
    void draw(const Team& team, int pass, Sampling& sampling) {
        const int rows = static_cast<int>(live_.size()), outputs = head_.outputs;
        if (!rows) return;  // the same on all ranks of the tensor group
        make_logits(team, pass, rows);
        if (!shard_ || shard_->tensor.rank == 0)
            sampling.run(team, rows, logits_.data(), outputs, outputs, head_.ids, draws_.data(), tokens_.data(), margins_.data());
        if (team.index != 0) return;
        if (stop_rules_ && (!shard_ || shard_->tensor.rank == 0)) weigh(pass);
        if (!shard_) return;
        std::vector<int64_t> all(static_cast<size_t>(rows) * shard_->tensor.size);
        exchanged_.gather(shard_->tensor, kDrafts, tokens_.data(), rows * sizeof(int64_t), -1, all.data());
        std::copy_n(all.begin(), rows, tokens_.begin());
    }

    // A token's bitwise complement means that its sequence stops.
    void weigh(int pass) {
        double brings = 0.0, least = INFINITY;
        for (size_t n = 0; n < live_.size(); ++n) {
            const StopRule& rule = stop_rules_[live_[n].sequence];
            live_[n].reach *= rule.chance(margins_[n], pass == 0);
            const double own = live_[n].reach * rule.further - rule.each;
            if (own < 0.0) {
                tokens_[n] = ~tokens_[n];
            } else if (going_[live_[n].sequence].depth > pass + 1) {
                brings += own;
                least = std::min(least, rule.step);
            }
        }
        if (brings >= least) return;
        for (size_t n = 0; n < live_.size(); ++n) tokens_[n] = std::min(tokens_[n], ~tokens_[n]);
    }

    // Joins rows of logits on the rank that samples.
    void make_logits(const Team& team, int pass, int rows) {
        const auto state = [&](int i) { return state_of(live_[i], pass); };
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

    // Prepares the next pass.
    void advance(int pass, int64_t* drafts, double* margins) {
        if (chain_) leave(pass);
        if (pass < steps_) take(pass, drafts, margins);
        if (pass + 1 == passes_ || over(pass)) return;
        Step next;
        std::vector<int64_t> places(places_.size());
        if (pass + 1 < modules_.count()) add_pairs(next, pass + 1, places);
        for (Live& live : live_) add_drafts(next, pass + 1, live, drafts + going_[live.sequence].drafts);
        places_ = std::move(places);
        step_ = std::move(next);
        fed_ = step_.rows();
        wanted_ = {true, {}, fed_};
        modules_.prepare(module_of(pass + 1), fed_, wanted_, threads_);
    }

    // Stores a module's states for the pairs of later calls.
    void leave(int pass) {
        const int64_t kept = modules_.count() - 1;
        for (int64_t i = 0; pass < kept && i < chain_->leaving; ++i)
            if (const int64_t pair = chain_->lasts[i]; chain_->reach[pair] > pass)
                std::copy_n(states_ + places_[pair] * width_, width_, chain_->leaves + (i * kept + pass) * width_);
    }

    // Stores the sampled tokens, and drops the sequences that are done.
    void take(int pass, int64_t* drafts, double* margins) {
        size_t kept = 0;
        for (size_t n = 0; n < live_.size(); ++n) {
            const Going& sequence = going_[live_[n].sequence];
            const bool is_last = tokens_[n] < 0;
            const int64_t token = is_last ? ~tokens_[n] : tokens_[n];
            drafts[sequence.drafts + pass] = token;
            margins[sequence.drafts + pass] = margins_[n];
            made_[live_[n].sequence] = pass + 1;
            if (draws_[n].said) draws_[n].said[draws_[n].said_count()] = token;
            if (is_last || sequence.depth <= pass + 1) continue;
            live_[kept] = live_[n];
            draws_[kept] = draws_[n];
            step_on(draws_[kept], live_[kept].sequence, pass + 1);
            ++kept;
        }
        live_.resize(kept);
    }

    // Adds the pairs that module `module` processes, with the states before them. `places` are the indices of their
    // states.
    void add_pairs(Step& next, int module, std::vector<int64_t>& places) const {
        for (int owner = 0; owner < pairs_.sequences; ++owner) {
            for (int64_t pair = pairs_.offsets[owner]; pair < pairs_.offsets[owner + 1]; ++pair) {
                if (chain_->reach[pair] <= module) continue;
                const int64_t before = chain_->before[pair], kept = before - pairs_.rows;
                const float* state = kept < 0 ? states_ + places_[before] * width_
                                              : chain_->kept + (kept * (modules_.count() - 1) + module - 1) * width_;
                places[pair] = static_cast<int64_t>(next.tokens.size());
                next.add(pairs_.token_ids[pair], pairs_.slots[pair], module, state, width_);
            }
            next.close(pairs_, owner, module);
        }
    }

    // Adds a sequence's drafts that are the pass's input: the last one and, until each module had its pass, those
    // after the last pair that the module can process.
    void add_drafts(Step& next, int pass, Live& live, const int64_t* tokens) const {
        const int64_t pair = going_[live.sequence].pair, place = static_cast<int64_t>(next.tokens.size());
        const int64_t first = pass < modules_.count() ? std::max<int64_t>(1, pass + 1 - chain_->reach[pair]) : pass;
        for (int64_t draft = first; draft <= pass; ++draft)
            next.add(tokens[draft - 1], pairs_.slots[pair] + draft, module_of(pass), state_of(live, draft - 1), width_);
        next.close(pairs_, live.owner, module_of(pass));
        live.first = first;
        live.place = place;
    }

    void step_on(Draw& draw, int64_t sequence, int64_t depth) const {
        ++draw.position;
        if (!draw.constrained || !remask_) return;
        Allowed allowed{nullptr, 0};
        remask_(sequence, depth, &allowed);
        draw.allowed = allowed.words;
        draw.allowed_words = allowed.count;
    }

    Modules& modules_;
    const Shard* shard_;
    Head head_;
    const Rows& pairs_;
    Rows fed_;
    Wanted wanted_;  // of the current pairs
    const float* hidden_;
    float* states_;
    long width_;
    int steps_, passes_;
    const Chain* chain_;  // null with one module
    Exchanged& exchanged_;
    Remask remask_;
    int threads_ = 1;
    const Going* going_ = nullptr;
    const StopRule* stop_rules_ = nullptr;
    int64_t* made_ = nullptr;
    std::vector<Live> live_;
    std::vector<int64_t> places_;  // indices of the pairs' states among those of the last pass
    std::vector<Draw> draws_;
    std::vector<int64_t> tokens_;
    std::vector<double> margins_;
    std::vector<float> logits_;
    Step step_;
};

}  // namespace outrider
