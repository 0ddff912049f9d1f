// Coupled sampling over the vocabulary: a row's token is argmax(score + Gumbel noise), all in float64.
//
// The noise is a pure function of (sequence key, position, vocabulary entry); its integers match kernels/sampling.py
// bit for bit. A head reduced to a part of the vocabulary uses the noise of its entries.
//
// Layout: logits are [rows][vocabulary] in float32. The total mass for top_p is summed in vocabulary order, that of
// its prefix in descending order of logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "pool.h"
#include "rules.h"

namespace outrider {

constexpr uint64_t kPositionStep = 0x8CB92BA72F3D8DD7ull;
constexpr uint64_t kVocabStep = 0x9E3779B97F4A7C15ull;

inline uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

struct Best {
    double score = -INFINITY, second = -INFINITY;
    int64_t id = -1;

    void meet(double other, int64_t other_id) {
        if (id < 0 || other > score || (other == score && other_id < id))
            *this = {other, score, other_id};
        else if (other > second)
            second = other;
    }

    void join(const Best& other) {
        if (other.id < 0) return;
        meet(other.score, other.id);
        second = std::max(second, other.second);
    }

    // The best score's lead. It predicts how likely another model samples the same token.
    double margin() const { return none() ? 0 : score - second; }

    // Whether the rules excluded every entry.
    bool none() const { return score == -INFINITY; }
};

constexpr int kBlock = 64;  // entries processed together

// log(x) for normal positive x, within one unit in the last place; written so that loops over it are vectorized.
inline double log_of(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    // x = m 2^e with m in [sqrt(1/2), sqrt(2)), so that values near 1 keep full precision.
    const uint64_t shifted = bits - 0x3FE6A09E667F3BCDull;
    const double exponent = static_cast<double>(static_cast<int32_t>(static_cast<int64_t>(shifted) >> 52));
    const uint64_t mantissa = bits - (shifted & 0xFFF0000000000000ull);
    double m;
    std::memcpy(&m, &mantissa, sizeof m);
    const double f = m - 1.0, s = f / (2.0 + f), z = s * s, w = z * z;
    const double odd = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    const double even = z * (6.666666666666735130e-01 + w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    const double half = 0.5 * f * f, rest = s * (half + odd + even);
    return exponent * 6.93147180369123816490e-01 - ((half - (rest + exponent * 1.90821492927058770002e-10)) - f);
}

// exp(x) for x at most 0, within an ulp or two, and never 0; vectorized like log_of.
inline double exp_of(double x) {
    x = x < -700.0 ? -700.0 : x;
    constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    const double shifted = x * 1.44269504088896340736 + kRound, n = shifted - kRound;
    const double r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10;
    double sum = 1.0 / 6227020800.0;
    for (const double factorial : {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0})
        sum = sum * r + 1.0 / factorial;
    uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const uint64_t power = (bits + 1023) << 52;
    double scale;
    std::memcpy(&scale, &power, sizeof scale);
    return sum * scale;
}

// The odd numerator n of an entry's u = n 2^-53 in (0, 1); its noise is -log(-log(1 - u)).
inline int64_t chance(uint64_t hash) { return static_cast<int64_t>(hash >> 12) * 2 + 1; }

inline double gumbel(int64_t chance) {
    const double left = static_cast<double>((1ll << 53) - chance) * 0x1p-53;  // 1 - u, exact
    return -log_of(-log_of(left));
}

// An upper bound of the noise of an entry whose hash begins with the 31 bits `first`, at most 0.06 too large where
// noise is large. It is -log(u), with log interpolated linearly between powers of two: a float's bits, read as an
// integer, are that interpolation.
inline float most_gumbel(int32_t first) {
    const float u = static_cast<float>(first);  // times 2^31
    int32_t bits;
    std::memcpy(&bits, &u, sizeof bits);
    return (158.0f - static_cast<float>(bits) * 0x1p-23f) * 6.93147181e-01f + 1e-4f;
}

// Applies a row's rules, then min_p, top_k and top_p. Excluded logits become -inf.
class Transform {
public:
    // Whether it changes a row of `count` entries.
    static bool changes(const Draw& draw, int count) {
        const bool cuts = (draw.top_k > 0 && draw.top_k < count) || draw.min_p > 0 || draw.top_p < 1;
        return Rules::change(draw) || (draw.temperature > 0 && cuts);
    }

    // `ids` are the logits' token ids; null for 0, 1, ...
    void operator()(const Draw& draw, float* logits, const int32_t* ids, int count) {
        rules_(draw, {logits, ids, count});
        const bool some = draw.top_k > 0 && draw.top_k < count;
        if (draw.temperature <= 0 || !(some || draw.min_p > 0 || draw.top_p < 1)) return;
        const float most = *std::max_element(logits, logits + count);
        if (draw.min_p > 0) {
            const double least = most / draw.temperature + std::log(draw.min_p);
            for (int i = 0; i < count; ++i)
                if (logits[i] / draw.temperature < least) logits[i] = -INFINITY;
        }
        if (some || draw.top_p < 1) cut_tail(draw, logits, count, some ? static_cast<int>(draw.top_k) : count, most);
    }

private:
    // Keeps exactly `most_kept` entries by (logit descending, id ascending), then the shortest prefix whose mass
    // reaches top_p.
    void cut_tail(const Draw& draw, float* logits, int count, int most_kept, float most) {
        keys_.resize(count);
        for (int i = 0; i < count; ++i) keys_[i] = key_of(logits[i], i);
        uint64_t last = ~0ull;
        if (most_kept < count) {
            sorted_ = keys_;
            std::nth_element(sorted_.begin(), sorted_.begin() + most_kept - 1, sorted_.end());
            last = sorted_[most_kept - 1];
        }
        if (draw.top_p < 1) last = last_of_mass(draw, logits, count, last, most);
        for (int i = 0; i < count; ++i) logits[i] = keys_[i] <= last ? logits[i] : -INFINITY;
    }

    // A sort key: ascending in descending order of logits, equal logits by ascending id.
    static uint64_t key_of(float logit, int id) {
        uint32_t bits;
        const float value = logit + 0.0f;  // maps -0 to 0
        std::memcpy(&bits, &value, sizeof bits);
        const uint32_t falling = bits >> 31 ? bits : ~bits & 0x7FFFFFFFu;
        return static_cast<uint64_t>(falling) << 32 | static_cast<uint32_t>(id);
    }

    // The last key of the shortest prefix that has at least top_p of the mass of all keys up to `last`.
    uint64_t last_of_mass(const Draw& draw, const float* logits, int count, uint64_t last, float most) {
        mass_.resize(count);
        for (int i = 0; i < count; ++i) {
            const double mass = exp_of((static_cast<double>(logits[i]) - most) / draw.temperature);
            mass_[i] = keys_[i] <= last ? mass : 0.0;
        }
        double total = 0;
        for (int i = 0; i < count; ++i) total += mass_[i];
        // All entries with less mass than this together have less than the share that is cut.
        const double least = (1 - draw.top_p) * total / (2.0 * count);
        sorted_.clear();
        for (int i = 0; i < count; ++i)
            if (mass_[i] > least) sorted_.push_back(keys_[i]);
        return last_of_prefix(draw.top_p * total, last);
    }

    // Sorts only as many keys as needed.
    uint64_t last_of_prefix(double wanted, uint64_t last) {
        double sum = 0;
        size_t at = 0;
        for (size_t width = 64; at < sorted_.size(); width *= 4) {
            const auto begin = sorted_.begin() + at, until = sorted_.begin() + std::min(at + width, sorted_.size());
            if (until != sorted_.end()) std::nth_element(begin, until, sorted_.end());
            std::sort(begin, until);
            for (; at < static_cast<size_t>(until - sorted_.begin()); ++at) {
                sum += mass_[sorted_[at] & 0xFFFFFFFFu];
                if (sum >= wanted) return sorted_[at];
            }
        }
        return last;
    }

    Rules rules_;
    std::vector<uint64_t> keys_, sorted_;
    std::vector<double> mass_;
};

// Finds the best of some entries of a row, with noise or, at temperature 0, by logit, block by block.
//
// Noise needs two logarithms in double precision. After the first block it is only computed for entries that may be
// among the best two, according to single-precision bounds of score and noise.
class Finder {
public:
    Finder(const Draw& draw, const float* logits, const int32_t* ids)
        : logits_(logits), ids_(ids), noisy_(draw.temperature > 0), temperature_(noisy_ ? draw.temperature : 1.0),
          row_key_(mix(draw.sequence_key + static_cast<uint64_t>(draw.position + 1) * kPositionStep)) {}

    Best operator()(int begin, int end) {
        Best best;
        for (int first = begin; first < end; first += kBlock) {
            const int count = std::min(kBlock, end - first);
            bound(first, count);
            const float most = largest_bound();
            if (best.id >= 0 && most == -INFINITY) continue;
            if (best.second == -INFINITY)
                meet_all(first, count, best);
            else if (most >= best.second)
                meet_some(first, count, best);
        }
        return best;
    }

private:
    int64_t id(int i) const { return ids_ ? ids_[i] : i; }

    // Computes bounds of the block's scores, to find the entries that may be among the best.
    void bound(int first, int count) {
        if (count < kBlock) std::fill_n(bounds_, kBlock, -INFINITY);
        if (!noisy_) {
            std::copy_n(logits_ + first, count, bounds_);
            return;
        }
        hash(first, count);
        const float inverse = static_cast<float>(1.0 / temperature_), over = inverse * 1.000001f, under = inverse * 0.999999f;
        for (int i = 0; i < count; ++i) {
            const float logit = logits_[first + i];
            bounds_[i] = std::max(logit * over, logit * under) + most_gumbel(static_cast<int32_t>(hashes_[i] >> 33));
        }
    }

    void hash(int first, int count) {
        if (ids_)
            for (int i = 0; i < count; ++i) hashes_[i] = mix(row_key_ + static_cast<uint64_t>(ids_[first + i] + 1) * kVocabStep);
        else
            for (int i = 0; i < kBlock; ++i) hashes_[i] = mix(row_key_ + static_cast<uint64_t>(first + i + 1) * kVocabStep);
    }

    float largest_bound() const {
        float most[kLanes];
        std::copy_n(bounds_, kLanes, most);
        for (int i = kLanes; i < kBlock; i += kLanes)
            for (int lane = 0; lane < kLanes; ++lane) most[lane] = std::max(most[lane], bounds_[i + lane]);
        return max_lane(load(most));
    }

    void meet_all(int first, int count, Best& best) {
        double scores[kBlock];
        for (int i = 0; i < count; ++i) scores[i] = logits_[first + i] / temperature_;
        if (noisy_)
            for (int i = 0; i < count; ++i) scores[i] += gumbel(chance(hashes_[i]));
        for (int i = 0; i < count; ++i) best.meet(scores[i], id(first + i));
    }

    void meet_some(int first, int count, Best& best) {
        for (int i = 0; i < count; ++i)
            if (bounds_[i] >= best.second) best.meet(score(first, i), id(first + i));
    }

    double score(int first, int i) const {
        const double own = logits_[first + i] / temperature_;
        return noisy_ ? own + gumbel(chance(hashes_[i])) : own;
    }

    const float* logits_;
    const int32_t* ids_;
    bool noisy_;
    double temperature_;
    uint64_t row_key_;
    uint64_t hashes_[kBlock] = {};
    float bounds_[kBlock];
};

// Samples every row of `logits` [rows][stride] with `count` entries; all threads end in step. `margins` [rows] may be
// null.
class Sampling {
public:
    void run(const Team& team, int rows, const float* logits, long stride, int count, const int32_t* ids, const Draw* draws,
             int64_t* tokens, double* margins) {
        const bool changed = std::any_of(draws, draws + rows, [&](const Draw& draw) { return Transform::changes(draw, count); });
        if (team.index == 0) {
            best_.assign(static_cast<size_t>(rows) * team.size, Best{});
            if (changed && changed_.size() < static_cast<size_t>(rows) * count) changed_.resize(static_cast<size_t>(rows) * count);
        }
        team.barrier();
        const auto own = team.share(rows);
        if (changed) {
            transform(own.begin, own.end, logits, stride, count, ids, draws);
            team.barrier();
        }
        const auto share = team.share(static_cast<long>(rows) * count);
        for (long row = share.begin / count; row * count < share.end; ++row) {
            const bool own_room = Transform::changes(draws[row], count);
            Finder find(draws[row], own_room ? changed_.data() + row * count : logits + row * stride, ids);
            best_[row * team.size + team.index] = find(static_cast<int>(std::max(share.begin - row * count, 0L)),
                                                       static_cast<int>(std::min<long>(share.end - row * count, count)));
        }
        team.barrier();
        for (long row = own.begin; row < own.end; ++row) {
            Best best;
            for (int part = 0; part < team.size; ++part) best.join(best_[row * team.size + part]);
            tokens[row] = best.none() && !ids ? draws[row].fallback : best.id;  // a reduced head may lack the fallback
            if (margins) margins[row] = best.margin();
        }
        team.barrier();
    }

private:
    // Copies and transforms the rows that their parameters change.
    void transform(long begin, long end, const float* logits, long stride, int count, const int32_t* ids, const Draw* draws) {
        Transform each;
        for (long row = begin; row < end; ++row) {
            if (!Transform::changes(draws[row], count)) continue;
            std::copy_n(logits + row * stride, count, changed_.data() + row * count);
            each(draws[row], changed_.data() + row * count, ids, count);
        }
    }

    std::vector<Best> best_;  // per row and thread
    std::vector<float> changed_;
};

}  // namespace outrider
