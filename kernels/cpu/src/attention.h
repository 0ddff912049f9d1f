// Multi-head latent attention over the paged cache (DeepSeek-V2, arXiv 2405.04434). Two forms: absorbed, where all
// heads attend to one latent, or by head, where each head attends to its own keys and values.
//
// A query processes the cache in chunks of kChunk slots at fixed positions of its sequence, in order, with a running
// maximum. A chunk's products are summed slot by slot, then added to the previous chunks' sum. Each segment of
// kSegment slots starts a new sum, and segments are joined in order, whether one thread or several computed them. No
// sum crosses queries. So a result does not depend on the other rows, the threads, or where blocks are.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "layers.h"

namespace outrider {

constexpr int kChunk = 64;      // slots
constexpr int kSegment = 128;
constexpr int kEnoughSegments = 3;  // per thread, so that they can be split evenly
constexpr int kTileRows = 8;    // rows of one sequence that are processed together
constexpr int kTileQueries = 64;
constexpr int kAskAhead = 16;   // slots
constexpr int kLine = 64;       // bytes
constexpr int kQuads = 4;       // queries, slots or vectors with sums in registers at once

// One thread's unit of work: rows [begin, end) of a sequence, heads [first_head, last_head) and segments
// [first_segment, last_segment). A walk over one of several segments stores its results in `part`, which are joined
// later.
struct Walk {
    int sequence, begin, end, first_head, last_head;
    long first_segment, last_segment;
    long part;  // index of its first query among all parts; -1: it covers all segments and needs no part
    long cost;

    int heads() const { return last_head - first_head; }
    int rows() const { return end - begin; }
    int queries() const { return rows() * heads(); }
};

// The walks of some rows, how many queries are split into parts, and the number of parts.
struct Walks {
    std::vector<Walk> all;
    long parted = 0, parts = 0;
};

inline long segments_of(const Rows& rows, int row) { return rows.slots[row] / kSegment + 1; }

// Few rows with a long context are split by segment, so that all threads share one pass over the cache. If that gives
// few walks, heads are split too.
inline void add_tile(const Shape& shape, const Rows& rows, Walk tile, bool apart, int head_tile, Walks& walks) {
    const long segments = segments_of(rows, tile.end - 1);
    for (int head = 0; head < shape.heads; head += head_tile) {
        tile.first_head = head;
        tile.last_head = std::min(head + head_tile, shape.heads);
        walks.parted += apart ? tile.queries() : 0;
        for (long s = 0; s < segments; s += apart ? 1 : segments) {
            tile.first_segment = s;
            tile.last_segment = apart ? s + 1 : segments;
            tile.part = apart ? walks.parts : -1;
            walks.parts += apart ? tile.queries() : 0;
            const long slots = std::min<long>(rows.slots[tile.end - 1] + 1, tile.last_segment * kSegment) - s * kSegment;
            tile.cost = slots * tile.queries();
            walks.all.push_back(tile);
        }
    }
}

inline Walks walks_of(const Shape& shape, const Rows& rows, int begin, int end, int threads) {
    Walks walks;
    for (int s = 0; s < rows.sequences; ++s) {
        const int first = std::max<int>(begin, rows.offsets[s]), last = std::min<int>(end, rows.offsets[s + 1]);
        for (int row = first; row < last; row += kTileRows) {
            const int until = std::min(row + kTileRows, last);
            const int most = std::max(kTileQueries / (until - row) / kQuads * kQuads, kQuads);
            const bool few = last - first <= kTileRows && threads > 1;
            const long segments = segments_of(rows, until - 1);
            const int even = (shape.heads + threads - 1) / threads;
            const bool by_heads = few && segments < kEnoughSegments * threads && (until - row) * even >= kQuads;
            add_tile(shape, rows, {s, row, until, 0, 0, 0, 0, -1, 0}, few && segments > 1, by_heads ? std::min(most, even) : most, walks);
        }
    }
    return walks;
}

// Calls take(walk) for this thread's share of the walks, balanced by cost.
template <class Take>
void share_walks(const Team& team, const Walks& walks, Take& take) {
    long total = 0;
    for (const Walk& walk : walks.all) total += walk.cost;
    const auto share = team.share(total);
    long at = 0;
    for (const Walk& walk : walks.all) {
        const long middle = at + walk.cost / 2;
        if (middle >= share.begin && middle < share.end) take(walk);
        at += walk.cost;
    }
}

// The part of a slot that a query is multiplied with: `own` vectors from `at` on, then `shared` ones from its
// beginning.
struct Met {
    int at, own, shared;
};

// scores[q][0..3] of Q queries and four slots.
template <int Q, class Value>
NEVER_INLINE void score(const float* const* queries, const Value* const* slots, Met met, float* const* scores) {
    F16 sums[Q][kQuads];
    for (int q = 0; q < Q; ++q)
        for (int j = 0; j < kQuads; ++j) sums[q][j] = zero();
    for (int part = 0, d = 0; part < 2; ++part) {
        const int end = part ? met.own + met.shared : met.own, from = part ? -met.own * kLanes : met.at;
        for (; d < end; ++d) {
            F16 keys[kQuads];
            for (int j = 0; j < kQuads; ++j) keys[j] = load(slots[j] + from + d * kLanes);
            for (int q = 0; q < Q; ++q) {
                const F16 query = load(queries[q] + d * kLanes);
                for (int j = 0; j < kQuads; ++j) sums[q][j] = fma(query, keys[j], sums[q][j]);
            }
        }
    }
    for (int q = 0; q < Q; ++q) sums_of_four(sums[q], scores[q]);
}

// out[q] = out[q] * kept[q] + sum over slots [begin, end) of weight times value, for V vectors at `at`. A slot's
// values begin at `from`.
template <int Q, int V, class Value>
NEVER_INLINE void gather(const float* const* weights, const Value* const* slots, int begin, int end, int from, int at,
                   const float* kept, float* const* out) {
    F16 sums[Q][V];
    for (int q = 0; q < Q; ++q)
        for (int v = 0; v < V; ++v) sums[q][v] = zero();
    for (int t = begin; t < end; ++t) {
        F16 values[V];
        for (int v = 0; v < V; ++v) values[v] = load(slots[t] + from + at + v * kLanes);
        for (int q = 0; q < Q; ++q) {
            const F16 weight = all(weights[q][t]);
            for (int v = 0; v < V; ++v) sums[q][v] = fma(weight, values[v], sums[q][v]);
        }
    }
    for (int q = 0; q < Q; ++q)
        for (int v = 0; v < V; ++v) {
            float* to = out[q] + at + v * kLanes;
            store(to, fma(load(to), all(kept[q]), sums[q][v]));
        }
}

template <class Work>
inline void in_quads(int count, const Work& work) {  // work(first, integral constant of how many)
    int first = 0;
    for (; first + 4 <= count; first += 4) work(first, std::integral_constant<int, 4>{});
    if (count - first == 3) work(first, std::integral_constant<int, 3>{});
    if (count - first == 2) work(first, std::integral_constant<int, 2>{});
    if (count - first == 1) work(first, std::integral_constant<int, 1>{});
}

// A query's state: the largest score `most`, and the sum of the weights e^(score - most). The weighted values are
// stored separately.
struct Gathered {
    float most = -INFINITY, total = 0;

    // Adds a later segment; `values` and `others` are [stride].
    void join(const Gathered& other, float* values, const float* others, int stride) {
        const float peak = std::max(most, other.most);
        const float own = exp_of(most - peak), its = exp_of(other.most - peak);
        for (int i = 0; i < stride; i += kLanes)
            store(values + i, fma(load(others + i), all(its), load(values + i) * all(own)));
        total = total * own + other.total * its;
        most = peak;
    }

    static float exp_of(float x) {
        float lanes[kLanes];
        store(lanes, exp(all(x)));
        return lanes[0];
    }
};

// Turns a query's scores [kChunk] in slots [begin, end) of a chunk into weights, 0 elsewhere, and adds them to the
// sum. Returns the factor by which earlier weighted values must be multiplied.
inline float weigh(float* weights, int begin, int end, Gathered& now) {
    if (begin >= end) return 1.0f;
    const int first = begin / kLanes * kLanes, last = (end + kLanes - 1) / kLanes * kLanes;  // whole vectors
    std::fill(weights + first, weights + begin, -INFINITY);
    std::fill(weights + end, weights + last, -INFINITY);
    F16 best = load(weights + first);
    for (int i = first + kLanes; i < last; i += kLanes) best = largest(best, load(weights + i));
    const float most = std::max(now.most, max_lane(best));
    F16 parts = zero();
    for (int i = first; i < last; i += kLanes) {
        store(weights + i, exp(load(weights + i) - all(most)));
        if (i < begin) std::fill(weights + i, weights + std::min(begin, i + kLanes), 0.0f);
        if (i + kLanes > end) std::fill(weights + std::max(end, i), weights + i + kLanes, 0.0f);
        parts = parts + load(weights + i);
    }
    std::fill(weights, weights + first, 0.0f);
    std::fill(weights + last, weights + kChunk, 0.0f);
    const float kept = now.total > 0 ? Gathered::exp_of(now.most - most) : 1.0f;
    now = {most, now.total * kept + sum(parts)};
    return kept;
}

// Memory for the parts of walks that cover one segment each.
struct Parts {
    std::vector<Gathered> gathered;
    std::vector<float> values;  // [parts][stride]
};

// Queries [rows][heads][query_stride] and results [rows][heads][gathered_stride]; both begin at the block's first row.
//
// Queries that share keys are numbered consecutively: by row, then head. With keys by head, by head, then row.
template <class Value>
class Walker {
public:
    Walker(const Shape& shape, const Rows& rows, const Value* cache, const float* queries, float* out, int first_row, Parts& parts)
        : shape_(shape), rows_(rows), cache_(cache), queries_(queries), out_(out), first_row_(first_row),
          stride_(shape.gathered_stride()), parts_(parts), segment_values_(std::make_unique_for_overwrite<float[]>(static_cast<size_t>(kTileQueries) * stride_)) {}

    void operator()(const Walk& walk) {
        const int count = walk.queries();
        for (int q = 0; q < count; ++q) {
            query_[q] = queries_ + place(walk, q) * shape_.query_stride();
            weights_[q] = weight_room_ + q * kChunk;
        }
        if (walk.part >= 0) {
            for (int q = 0; q < count; ++q) values_[q] = parts_.values.data() + (walk.part + q) * stride_;
            walk_segment(walk, walk.first_segment);
            std::copy_n(now_, count, parts_.gathered.begin() + walk.part);
            return;
        }
        Gathered whole[kTileQueries];
        for (int q = 0; q < count; ++q) {
            values_[q] = segment_values_.get() + static_cast<size_t>(q) * stride_;
            std::fill_n(out_of(walk, q), stride_, 0.0f);
        }
        for (long segment = walk.first_segment; segment < walk.last_segment; ++segment) {
            walk_segment(walk, segment);
            for (int q = 0; q < count; ++q)
                if (now_[q].total > 0) whole[q].join(now_[q], out_of(walk, q), values_[q], stride_);
        }
        for (int q = 0; q < count; ++q) finish(whole[q], out_of(walk, q));
    }

    // Joins the parts that one tile's walks stored for query q. `walk` is the first of them.
    void join_parts(const Walk* walk, int q) {
        const long segments = segments_of(rows_, walk->end - 1);
        float* out = out_of(*walk, q);
        Gathered whole;
        std::fill_n(out, stride_, 0.0f);
        for (long segment = 0; segment < segments; ++segment) {
            const long part = walk[segment].part + q;
            const Gathered& its = parts_.gathered[part];
            if (its.total > 0) whole.join(its, out, parts_.values.data() + part * stride_, stride_);
        }
        finish(whole, out);
    }

private:
    // The slots [begin, end) of a chunk that row `row` attends to.
    struct Seen {
        int begin, end;
        bool operator==(const Seen&) const = default;
    };
    Seen seen(const Walk& walk, int row, long chunk) const {
        const int64_t begin = rows_.first_slots[walk.sequence] - chunk * kChunk, end = rows_.slots[row] + 1 - chunk * kChunk;
        return {static_cast<int>(std::clamp<int64_t>(begin, 0, kChunk)), static_cast<int>(std::clamp<int64_t>(end, 0, kChunk))};
    }

    // The number of heads that share keys; below, the number of such queries in the walk.
    int together(const Walk& walk) const { return shape_.by_head ? 1 : walk.heads(); }
    int company(const Walk& walk) const { return walk.rows() * together(walk); }

    int row_of(const Walk& walk, int q) const { return walk.begin + q % company(walk) / together(walk); }
    int head_of(const Walk& walk, int q) const {
        return walk.first_head + q / company(walk) * together(walk) + q % company(walk) % together(walk);
    }
    long place(const Walk& walk, int q) const {
        return static_cast<long>(row_of(walk, q) - first_row_) * shape_.heads + head_of(walk, q);
    }
    float* out_of(const Walk& walk, int q) const { return out_ + place(walk, q) * stride_; }

    void finish(const Gathered& gathered, float* values) const {
        const F16 inverse = all(1.0f / gathered.total);
        for (int i = 0; i < stride_; i += kLanes) store(values + i, load(values + i) * inverse);
    }

    void walk_segment(const Walk& walk, long segment) {
        for (int q = 0; q < walk.queries(); ++q) {
            now_[q] = Gathered{};
            std::fill_n(values_[q], stride_, 0.0f);
        }
        const long first = segment * (kSegment / kChunk), last = rows_.slots[walk.end - 1] / kChunk;
        for (long chunk = first; chunk <= std::min(last, first + kSegment / kChunk - 1); ++chunk) visit(walk, chunk);
    }

    void visit(const Walk& walk, long chunk) {
        find_slots(walk, chunk);
        const int last = seen(walk, walk.end - 1, chunk).end, count = walk.queries(), values = shape_.gathered();
        for (int slot = 0; slot < last; slot += kQuads) {
            int asked = 0;  // prefetched vectors of a later quad; interleaved with products to keep memory and core busy
            for (int first = 0; first < count; first += company(walk)) {
                for (; asked * count < kQuads * (first + company(walk)); ++asked) ask_for(slots_[slot + kAskAhead + asked]);
                score_quad(walk, first, slot);
            }
        }
        for (int q = 0; q < count; ++q) {
            const Seen range = seen(walk, row_of(walk, q), chunk);
            kept_[q] = weigh(weights_[q], range.begin, range.end, now_[q]);
        }
        int at = 0;
        if (count <= 2)  // with few queries, more vectors at once
            for (; at + 2 * kQuads * kLanes <= values; at += 2 * kQuads * kLanes) gather_part<2 * kQuads>(walk, chunk, at);
        for (; at + kQuads * kLanes <= values; at += kQuads * kLanes) gather_part<kQuads>(walk, chunk, at);
        for (; at < values; at += kLanes) gather_part<1>(walk, chunk, at);
    }

    // Addresses of the chunk's slots. After the last slot that any row attends to, its address is repeated.
    void find_slots(const Walk& walk, long chunk) {
        const int64_t first = chunk * kChunk, last = rows_.slots[walk.end - 1] - first;
        int64_t in_block = first % shape_.block_size;
        for (int i = 0; i < kChunk + kAskAhead + kQuads; ++i, in_block = in_block + 1 == shape_.block_size ? 0 : in_block + 1) {
            if (i > last)
                slots_[i] = slots_[i - 1];
            else if (i == 0 || in_block == 0)
                slots_[i] = cache_ + rows_.slot_of(shape_, walk.sequence, first + i) * shape_.slot_stride();
            else
                slots_[i] = slots_[i - 1] + shape_.slot_stride();
        }
    }

    void ask_for(const Value* slot) const {
        for (int i = 0; i < shape_.slot_stride(); i += kLine / sizeof(Value)) prefetch(slot + i);
    }

    // Scores of the queries that share keys, from `first` on. This includes slots that only later rows attend to:
    // these get no weight.
    void score_quad(const Walk& walk, int first, int slot) {
        const Met met = shape_.by_head ? Met{shape_.key_of(head_of(walk, first)), shape_.nope / kLanes, shape_.rope / kLanes}
                                       : Met{0, shape_.latent_stride() / kLanes, 0};
        in_quads(company(walk), [&](int i, auto q) {
            float* scores[decltype(q)::value];
            for (int n = 0; n < q; ++n) scores[n] = weights_[first + i + n] + slot;
            score<decltype(q)::value>(query_ + first + i, slots_ + slot, met, scores);
        });
    }

    template <int V>
    void gather_part(const Walk& walk, long chunk, int at) {
        for (int row = walk.begin, until = row; row < walk.end; row = until) {
            const Seen range = seen(walk, row, chunk);
            while (until < walk.end && seen(walk, until, chunk) == range) ++until;  // rows with the same slots are processed together
            if (range.begin >= range.end) continue;
            for (int q = (row - walk.begin) * together(walk); q < walk.queries(); q += company(walk))
                gather_rows<V>((until - row) * together(walk), q, range, values_at(walk, q), at);
        }
    }

    int values_at(const Walk& walk, int q) const { return shape_.by_head ? shape_.value_of(head_of(walk, q)) : 0; }

    template <int V>
    void gather_rows(int count, int first, Seen range, int from, int at) {
        in_quads(count, [&](int i, auto q) {
            gather<decltype(q)::value, V>(weights_ + first + i, slots_, range.begin, range.end, from, at,
                                          kept_ + first + i, values_ + first + i);
        });
    }

    const Shape& shape_;
    const Rows& rows_;
    const Value* cache_;
    const float* queries_;
    float* out_;
    int first_row_, stride_;  // of a query's weighted values
    const Value* slots_[kChunk + kAskAhead + kQuads];
    Parts& parts_;
    std::unique_ptr<float[]> segment_values_;
    const float* query_[kTileQueries];
    float *values_[kTileQueries], *weights_[kTileQueries];
    Gathered now_[kTileQueries];  // of the current segment
    float kept_[kTileQueries];
    alignas(64) float weight_room_[kTileQueries * kChunk];
};

}  // namespace outrider
