// Routing and experts (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
//
// Rows are grouped by expert, so that a round reads each chosen expert's weights once. A (row, expert) output is
// complete before it is weighted. A row's outputs are summed in ascending expert id, the shared expert last.
//
// Layout: outputs are [pairs][hidden], the pairs of one expert consecutively, those of the shared expert last.
#pragma once

#include <algorithm>
#include <vector>

#include "layers.h"

namespace outrider {

struct Choice {  // of one row
    int32_t* experts;  // [chosen], ascending
    float* weights;
};

// Marks the `count` best of `scores` in `taken`; ties go to the lower id.
inline void mark_best(const float* scores, int size, int count, char* taken) {
    std::fill(taken, taken + size, 0);
    for (int n = 0; n < count; ++n) {
        int best = -1;
        for (int i = 0; i < size; ++i)
            if (!taken[i] && (best < 0 || scores[i] > scores[best])) best = i;
        taken[best] = 1;
    }
}

class Router {
public:
    explicit Router(const Shape& shape)
        : shape_(shape), biased_(shape.experts), group_scores_(shape.groups), taken_(shape.experts), groups_(shape.groups) {}

    // Chooses experts from a row's logits [experts], which become scores in place, and the bias of the choice.
    void operator()(float* logits, const float* bias, const Choice& choice) {
        const int experts = shape_.experts;
        for (int i = 0; i < experts; i += kLanes)
            store_some(logits + i, sigmoid(load_some(logits + i, experts - i)), experts - i);
        for (int i = 0; i < experts; ++i) biased_[i] = logits[i] + bias[i];
        if (shape_.chosen_groups < shape_.groups) keep_best_groups();
        mark_best(biased_.data(), experts, shape_.chosen, taken_.data());
        int place = 0;
        float total = 0;
        for (int i = 0; i < experts; ++i)
            if (taken_[i]) {
                choice.experts[place] = i;
                choice.weights[place++] = logits[i];
                total += logits[i];
            }
        const float scale = shape_.routed_scale;
        for (int n = 0; n < place; ++n)
            choice.weights[n] = (shape_.normalise ? choice.weights[n] / (total + 1e-20f) : choice.weights[n]) * scale;
    }

private:
    // A group's score is the sum of its best two. Experts of the other groups cannot be chosen.
    void keep_best_groups() {
        const int size = shape_.experts / shape_.groups;
        for (int g = 0; g < shape_.groups; ++g) {
            float first = -INFINITY, second = -INFINITY;
            for (int i = g * size; i < (g + 1) * size; ++i) {
                if (biased_[i] > first) {
                    second = first;
                    first = biased_[i];
                } else if (biased_[i] > second) {
                    second = biased_[i];
                }
            }
            group_scores_[g] = first + second;
        }
        mark_best(group_scores_.data(), shape_.groups, shape_.chosen_groups, groups_.data());
        for (int i = 0; i < shape_.experts; ++i)
            if (!groups_[i / size]) biased_[i] = -INFINITY;
    }

    const Shape& shape_;
    std::vector<float> biased_, group_scores_;
    std::vector<char> taken_, groups_;
};

// The rows of a round by slot. A pair is a (row, place) of the choices; the shared expert's pairs come last.
struct Groups {
    struct Group {
        const MlpWeights* weights;
        int first, count;  // range of pairs
    };
    std::vector<Group> groups;
    std::vector<int32_t> row_of_pair, pair_of_choice, counts;

    // `chosen` [rows][shape.chosen] are slots.
    void build(const Shape& shape, const LayerWeights& layer, const int32_t* chosen, int rows) {
        const int routed = rows * shape.chosen, slots = layer.routed->count;
        counts.assign(slots + 1, 0);
        for (int i = 0; i < routed; ++i) ++counts[chosen[i] + 1];
        for (int s = 0; s < slots; ++s) counts[s + 1] += counts[s];
        groups.clear();
        for (int s = 0; s < slots; ++s)
            if (counts[s + 1] > counts[s]) groups.push_back({layer.routed->slots + s, counts[s], counts[s + 1] - counts[s]});
        row_of_pair.resize(routed + rows);
        pair_of_choice.resize(routed);
        for (int i = 0; i < routed; ++i) {
            const int pair = counts[chosen[i]]++;
            row_of_pair[pair] = i / shape.chosen;
            pair_of_choice[i] = pair;
        }
        if (!layer.shared) return;
        groups.push_back({&layer.dense, routed, rows});
        for (int row = 0; row < rows; ++row) row_of_pair[routed + row] = row;
    }
};

// silu(gate) * up of one panel, whose vectors alternate between 16 gate outputs and their 16 up outputs.
inline void store_gated(float* row, int panel_output, int width, const F16* sums) {
    static_assert(kVectors == 2);
    const int first = panel_output / 2;
    store_some(row + first, silu(sums[0]) * sums[1], width - first);
}

// The inner activations of every pair (the input of its expert's last product), written to to(job, pair), from x(row).
template <class Input, class To>
void gate_pairs(const Team& team, const Groups& by_expert, const Input& x, const To& to) {
    const auto& groups = by_expert.groups;
    products(
        team, static_cast<int>(groups.size()), [&](int job) -> const Linear& { return groups[job].weights->gate_up; },
        [&](int job) { return groups[job].count; },
        [&](int job, int i) { return x(by_expert.row_of_pair[groups[job].first + i]); },
        [&](int job, int i, int first, const F16* sums) {
            store_gated(to(job, groups[job].first + i), first, groups[job].weights->width, sums);
        });
    team.barrier();
}

// The outputs of every pair, written to to(job, pair), from inner(pair).
template <class Input, class To>
void finish_pairs(const Team& team, const Groups& by_expert, const Input& inner, const To& to) {
    const auto& groups = by_expert.groups;
    products(
        team, static_cast<int>(groups.size()), [&](int job) -> const Linear& { return groups[job].weights->down; },
        [&](int job) { return groups[job].count; }, [&](int job, int i) { return inner(groups[job].first + i); },
        [&](int job, int i, int first, const F16* sums) {
            store_panel(to(job, groups[job].first + i), first, groups[job].weights->down.outputs, sums);
        });
    team.barrier();
}

// The weighted sum of a row's outputs (`width` columns, [pairs][width]) in ascending expert id, then the shared
// expert's output, if any. Stored to `out`, or added to it.
inline void combine(const Shape& shape, const Groups& by_expert, const float* weights, const float* outputs, int width,
                    int row, const float* shared, Put put, float* out) {
    const int32_t* pairs = by_expert.pair_of_choice.data() + static_cast<long>(row) * shape.chosen;
    weights += static_cast<long>(row) * shape.chosen;
    for (int i = 0; i < width; i += kLanes) {
        const int count = width - i;
        F16 total = load_some(outputs + static_cast<long>(pairs[0]) * width + i, count) * all(weights[0]);
        for (int n = 1; n < shape.chosen; ++n)
            total = total + load_some(outputs + static_cast<long>(pairs[n]) * width + i, count) * all(weights[n]);
        if (shared) total = total + load_some(shared + i, count);
        store_some(out + i, put == Put::kAdd ? load_some(out + i, count) + total : total, count);
    }
}

}  // namespace outrider
