// A layer whose outputs are split over ranks. Every rank computes complete outputs of its own, and gathers the other
// ranks' outputs for the next product. No sum is split, so a row has the same bits as on one rank.
//
// Layout: a rank sends [rows][width of the widest slice]; after the gather, a row's slices are in rank order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "collectives.h"

namespace outrider {

// The purpose of a collective, for traffic and errors. kernels/cpu/library.py has the same list.
enum Purpose : int32_t {
    kLatents, kHeads, kAttention, kInner, kOutputs, kEmbeddings, kCounts, kRowsToExperts, kPairsToOwners, kLogits, kDrafts,
    kExpertLoads,
};

// `size` outputs in one slice per rank; slices differ by at most one unit. Twin: workers/parallel/slices.py.
struct Cut {
    int size, parts, unit;

    int begin(int part) const {
        const int64_t units = (size + unit - 1) / unit;
        return static_cast<int>(std::min<int64_t>(size, units * part / parts * unit));
    }
    int width(int part) const { return begin(part + 1) - begin(part); }
    int widest() const {
        int most = 0;
        for (int part = 0; part < parts; ++part) most = std::max(most, width(part));
        return most;
    }
};

// A rank's share of every layer.
struct Shard {
    Group tensor;  // ranks with the same rows; they split the heads
    Group stage;   // ranks with the same layers: consecutive data groups of tensor.size ranks each
    int32_t unit;  // outputs that are not separated
    int32_t spread;  // 1: whole experts, in order over `stage`; 0: each expert is split over `tensor`
    int32_t heads, unused;  // heads over all ranks of `tensor`

    Cut cut(int size) const { return {size, tensor.size, unit}; }
    int own_begin(int size) const { return cut(size).begin(tensor.rank); }
    int own_width(int size) const { return cut(size).width(tensor.rank); }
    int data() const { return stage.rank / tensor.size; }
    int datas() const { return stage.size / tensor.size; }
};

// Buffers for exchanges with other ranks, and the error state. After a failure no exchange is waited for: the call
// runs to its end on invalid data and returns the error.
struct Exchanged {
    std::vector<float> mine, theirs;
    int32_t broken = 0, purpose = 0;  // the group's error code, and the purpose

    void gather(const Group& group, Purpose what, const void* part, int64_t bytes, int root, void* all) {
        if (group.size == 1) std::memcpy(all, part, bytes);
        else if (!broken && (broken = group.gather(group.state, what, part, bytes, root, all))) purpose = what;
    }

    void exchange(const Group& group, Purpose what, const void* sent, const int64_t* sent_sizes, void* received,
                  const int64_t* received_sizes) {
        if (!broken && (broken = group.exchange(group.state, what, sent, sent_sizes, received, received_sizes))) purpose = what;
    }

    float* own(long size) {
        if (mine.size() < static_cast<size_t>(size)) mine.resize(size);
        return mine.data();
    }
};

enum class Put { kStore, kAdd };

// Gathers rows: `mine` [rows][stride] are this rank's columns by cut_of(row); whole rows are written to to(row). All
// threads begin and end in step.
template <class CutOf, class To>
void gather_columns(const Team& team, const Group& group, Purpose what, int rows, const float* mine, int stride,
                    Exchanged& exchanged, Put put, const CutOf& cut_of, const To& to) {
    const long part = static_cast<long>(rows) * stride;
    if (team.index == 0 && rows) {
        if (exchanged.theirs.size() < static_cast<size_t>(part * group.size)) exchanged.theirs.resize(part * group.size);
        exchanged.gather(group, what, mine, part * sizeof(float), -1, exchanged.theirs.data());
    }
    team.barrier();
    const auto share = team.share(rows);
    for (long row = share.begin; row < share.end; ++row) {
        const Cut cut = cut_of(static_cast<int>(row));
        for (int r = 0; r < group.size; ++r) {
            const float* from = exchanged.theirs.data() + r * part + row * stride;
            float* out = to(static_cast<int>(row)) + cut.begin(r);
            const int width = cut.width(r);
            if (put == Put::kStore)
                std::copy_n(from, width, out);
            else
                for (int i = 0; i < width; ++i) out[i] = out[i] + from[i];
        }
    }
    team.barrier();
}

}  // namespace outrider
