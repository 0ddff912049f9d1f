// A row's rules: logit changes and exclusions that are applied before temperature.
//
// Each changed logit is computed in double and rounded once. Reference: workers/sampling/row_rules.py.
//
// Layout: a row's logits [vocabulary] in float32, changed in place. A logit's terms are added in the order of the
// code; no sum crosses logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace outrider {

// A row's sampling parameters. `position` is the token's own, counted over prompt and output. Arrays with count zero
// are absent.
struct Draw {
    uint64_t sequence_key;
    int64_t position;
    double temperature;  // 0: greedy; otherwise at least 1e-12
    double min_p, top_p;
    int64_t top_k;  // 0: all
    int64_t prompt_tokens;
    const int64_t* ruled_out;  // token ids excluded before position `ruled_out_until`
    int64_t ruled_out_count, ruled_out_until;
    const int64_t* biased;
    const double* biases;
    int64_t biased_count;
    const uint32_t* allowed;  // bit mask of tokens; those beyond it are excluded; null: all allowed
    int64_t allowed_words;
    const int64_t* bad_words;  // for each: its length, then its tokens
    int64_t bad_words_size;
    int64_t penalises;
    double repetition, frequency, presence;
    const int64_t* prompt_ids;  // distinct tokens of the prompt, for the repetition penalty
    int64_t prompt_ids_count;
    int64_t* said;  // the output tokens, drafts included; null: no rule needs them
    int64_t constrained;  // a grammar decides the allowed tokens of each position
    int64_t fallback;  // token if the rules exclude all tokens

    int64_t said_count() const { return said ? position - prompt_tokens : 0; }
};

// A row of logits. `ids` are their token ids, ascending; null for 0, 1, ...
struct Entries {
    float* logits;
    const int32_t* ids;
    int count;

    // A token's logit, or null if the row does not have it.
    float* of(int64_t id) const {
        if (!ids) return id < count ? logits + id : nullptr;
        const int32_t* found = std::lower_bound(ids, ids + count, static_cast<int32_t>(id));
        return found != ids + count && *found == id ? logits + (found - ids) : nullptr;
    }

    void rule_out(int64_t id) const {
        if (float* logit = of(id)) *logit = -INFINITY;
    }
};

class Rules {
public:
    // Whether the rules change a row.
    static bool change(const Draw& draw) {
        const bool ruled_out = draw.position < draw.ruled_out_until && draw.ruled_out_count > 0;
        return draw.biased_count > 0 || draw.allowed || draw.bad_words_size > 0 || ruled_out || draw.penalises;
    }

    void operator()(const Draw& draw, const Entries& row) {
        for (int64_t n = 0; n < draw.biased_count; ++n)
            if (float* logit = row.of(draw.biased[n])) *logit = static_cast<float>(*logit + draw.biases[n]);
        if (draw.allowed) keep_allowed(draw, row);
        rule_out_bad_words(draw, row);
        if (draw.position < draw.ruled_out_until)
            for (int64_t n = 0; n < draw.ruled_out_count; ++n) row.rule_out(draw.ruled_out[n]);
        if (draw.penalises) penalise(draw, row);
    }

private:
    static void keep_allowed(const Draw& draw, const Entries& row) {
        for (int i = 0; i < row.count; ++i) {
            const int64_t id = row.ids ? row.ids[i] : i, word = id / 32;
            if (word >= draw.allowed_words || !(draw.allowed[word] >> (id % 32) & 1)) row.logits[i] = -INFINITY;
        }
    }

    // Excludes the tokens that would complete a bad word after the output so far.
    static void rule_out_bad_words(const Draw& draw, const Entries& row) {
        const int64_t said = draw.said_count();
        for (int64_t at = 0; at < draw.bad_words_size; at += 1 + draw.bad_words[at]) {
            const int64_t *word = draw.bad_words + at + 1, before = draw.bad_words[at] - 1;
            if (before == 0 || (before <= said && std::equal(word, word + before, draw.said + said - before)))
                row.rule_out(word[before]);
        }
    }

    void penalise(const Draw& draw, const Entries& row) {
        for (int64_t n = 0; n < draw.prompt_ids_count; ++n) note(draw.prompt_ids[n]);
        for (int64_t n = 0; n < draw.said_count(); ++n) ++note(draw.said[n]);
        for (const int64_t id : noted_) {
            if (float* logit = row.of(id)) *logit = penalised(draw, *logit, notes_[id] - 1);
            notes_[id] = 0;
        }
        noted_.clear();
    }

    // One more than the number of times the token occurred in the output.
    int32_t& note(int64_t id) {
        if (id >= static_cast<int64_t>(notes_.size())) notes_.resize(id + 1);
        if (notes_[id] == 0) {
            notes_[id] = 1;
            noted_.push_back(id);
        }
        return notes_[id];
    }

    static float penalised(const Draw& draw, double logit, int32_t count) {
        logit = logit > 0 ? logit / draw.repetition : logit * draw.repetition;
        logit -= draw.frequency * count;
        return static_cast<float>(logit - (count > 0 ? draw.presence : 0.0));
    }

    std::vector<int32_t> notes_;  // by token id; zero between rows
    std::vector<int64_t> noted_;
};

}  // namespace outrider
