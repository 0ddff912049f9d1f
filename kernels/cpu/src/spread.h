// Whole experts spread over the ranks of a stage, each rank having a range of slots.
//
// With several data groups a row is sent once to each rank that has chosen experts, by its group's rank at the same
// place. An expert's output is computed completely on one rank. Its columns then go to the ranks of the row's group
// that own them, which sum in the order of experts.h. So all ranks sum equally many values, even with few rows.
//
// Layout: a packet for a rank has its rows one after another; results return as [pairs][columns of the owner].
#pragma once

#include <numeric>
#include <vector>

#include "experts.h"

namespace outrider {

struct SpreadRoom {
    std::vector<const float*> x;  // every row that may need this rank's experts
    std::vector<const int32_t*> chosen;
    std::vector<int32_t> source;  // the row's data group
    std::vector<int32_t> sent_rows;
    std::vector<char> sent_bytes, received_bytes;
    std::vector<int64_t> counts, all_counts, sent_sizes, received_sizes;
    Groups own;                               // pairs of this rank's experts
    std::vector<std::vector<int32_t>> pairs;  // pairs of `own`, by source
    std::vector<float> inner, outputs, sent;
};

class SpreadExperts {
public:
    SpreadExperts(const Team& team, const Shape& shape, const LayerWeights& layer, SpreadRoom& room, Exchanged& exchanged)
        : team_(team), shape_(shape), shard_(*shape.shard), layer_(layer), room_(room), exchanged_(exchanged),
          slots_{layer.routed->count, shard_.stage.size, 1} {}

    // Computes this rank's columns [routed pairs][own width] of the outputs of `rows` rows x [rows][hidden] that chose
    // the slots `chosen`, in the order of `by_expert`. All threads end in step. A rank without rows takes part too.
    void run(const Groups& by_expert, const float* x, const int32_t* chosen, int rows, float* outputs) {
        if (team_.index == 0) {
            collect(x, chosen, rows);
            build();
        }
        team_.barrier();
        const int inner_stride = layer_.routed->slots[0].down.inputs, hidden = shape_.hidden;
        gate_pairs(team_, room_.own, [&](int row) { return room_.x[row]; },
                   [&](int, int pair) { return room_.inner.data() + static_cast<long>(pair) * inner_stride; });
        finish_pairs(team_, room_.own,
                     [&](int pair) { return room_.inner.data() + static_cast<long>(pair) * inner_stride; },
                     [&](int, int pair) { return room_.outputs.data() + static_cast<long>(pair) * hidden; });
        pack_outputs();
        team_.barrier();
        if (team_.index == 0) return_outputs(by_expert, rows, outputs);
        team_.barrier();
    }

private:
    int first_slot(int rank) const { return slots_.begin(rank); }
    bool has(int rank, int32_t slot) const { return slot >= first_slot(rank) && slot < first_slot(rank + 1); }
    int rank_at(int data) const { return data * shard_.tensor.size + shard_.tensor.rank; }
    int64_t packet() const { return static_cast<int64_t>(shape_.hidden) * sizeof(float) + shape_.chosen * sizeof(int32_t); }

    // Collects all rows that may need this rank's experts, by data group.
    void collect(const float* x, const int32_t* chosen, int rows) {
        room_.x.clear();
        room_.chosen.clear();
        room_.source.clear();
        if (shard_.datas() > 1) send_rows(x, chosen, rows);
        const char* at = room_.received_bytes.data();
        for (int data = 0; data < shard_.datas(); ++data) {
            if (data == shard_.data()) {
                for (int row = 0; row < rows; ++row)
                    add_row(x + static_cast<long>(row) * shape_.hidden, chosen + static_cast<long>(row) * shape_.chosen, data);
                continue;
            }
            for (int64_t left = room_.received_sizes[rank_at(data)]; left > 0; left -= packet(), at += packet())
                add_row(reinterpret_cast<const float*>(at), reinterpret_cast<const int32_t*>(at + shape_.hidden * sizeof(float)), data);
        }
    }

    void add_row(const float* x, const int32_t* chosen, int data) {
        room_.x.push_back(x);
        room_.chosen.push_back(chosen);
        room_.source.push_back(data);
    }

    // Sends the rank at the same place of each other group the rows that chose its experts.
    void send_rows(const float* x, const int32_t* chosen, int rows) {
        const int ranks = shard_.stage.size;
        room_.sent_bytes.clear();
        room_.sent_sizes.assign(ranks, 0);
        room_.received_sizes.assign(ranks, 0);
        for (int data = 0; data < shard_.datas(); ++data) {
            const int rank = rank_at(data);
            for (int row = 0; row < rows && data != shard_.data(); ++row) {
                const int32_t* own = chosen + static_cast<long>(row) * shape_.chosen;
                if (!std::any_of(own, own + shape_.chosen, [&](int32_t slot) { return has(rank, slot); })) continue;
                append(x + static_cast<long>(row) * shape_.hidden, own);
                room_.sent_sizes[rank] += packet();
            }
        }
        room_.all_counts.assign(static_cast<size_t>(ranks) * ranks, 0);
        exchanged_.gather(shard_.stage, kCounts, room_.sent_sizes.data(), ranks * sizeof(int64_t), -1, room_.all_counts.data());
        for (int data = 0; data < shard_.datas(); ++data)
            room_.received_sizes[rank_at(data)] = room_.all_counts[static_cast<size_t>(rank_at(data)) * ranks + shard_.stage.rank];
        room_.received_bytes.resize(std::accumulate(room_.received_sizes.begin(), room_.received_sizes.end(), int64_t{0}));
        exchanged_.exchange(shard_.stage, kRowsToExperts, room_.sent_bytes.data(), room_.sent_sizes.data(),
                            room_.received_bytes.data(), room_.received_sizes.data());
    }

    void append(const float* x, const int32_t* chosen) {
        const auto bytes = [&](const void* from, size_t size) {
            const char* begin = static_cast<const char*>(from);
            room_.sent_bytes.insert(room_.sent_bytes.end(), begin, begin + size);
        };
        bytes(x, shape_.hidden * sizeof(float));
        bytes(chosen, shape_.chosen * sizeof(int32_t));
    }

    // Builds the pairs of this rank's experts: by slot, then by row.
    void build() {
        const int first = first_slot(shard_.stage.rank), last = first_slot(shard_.stage.rank + 1);
        Groups& own = room_.own;
        own.groups.clear();
        own.row_of_pair.clear();
        room_.pairs.assign(shard_.datas(), {});
        for (int slot = first; slot < last; ++slot) {
            const int begin = static_cast<int>(own.row_of_pair.size());
            for (size_t row = 0; row < room_.x.size(); ++row) {
                const int32_t* chosen = room_.chosen[row];
                if (std::find(chosen, chosen + shape_.chosen, slot) == chosen + shape_.chosen) continue;
                room_.pairs[room_.source[row]].push_back(static_cast<int32_t>(own.row_of_pair.size()));
                own.row_of_pair.push_back(static_cast<int32_t>(row));
            }
            const int count = static_cast<int>(own.row_of_pair.size()) - begin;
            if (count) own.groups.push_back({layer_.routed->slots + slot, begin, count});
        }
        const size_t pairs = own.row_of_pair.size();
        const auto grow = [](std::vector<float>& room, size_t size) {
            if (room.size() < size) room.resize(size);
        };
        grow(room_.inner, pairs * layer_.routed->slots[0].down.inputs);
        grow(room_.outputs, pairs * shape_.hidden);
        grow(room_.sent, pairs * shape_.hidden);
    }

    // Packs the columns of every pair for the ranks of the rows' own groups: by group, then by rank.
    void pack_outputs() {
        const Cut cut = shard_.cut(shape_.hidden);
        size_t before = 0;  // pairs of previous groups
        for (const auto& pairs : room_.pairs) {
            const auto share = team_.share(static_cast<long>(pairs.size()));
            for (long n = share.begin; n < share.end; ++n)
                for (int rank = 0; rank < cut.parts; ++rank)
                    std::copy_n(room_.outputs.data() + static_cast<long>(pairs[n]) * shape_.hidden + cut.begin(rank), cut.width(rank),
                                room_.sent.data() + before * shape_.hidden + pairs.size() * cut.begin(rank) + n * cut.width(rank));
            before += pairs.size();
        }
    }

    void return_outputs(const Groups& by_expert, int rows, float* outputs) {
        const Cut cut = shard_.cut(shape_.hidden);
        const int own = cut.width(shard_.tensor.rank);
        room_.sent_sizes.clear();
        room_.received_sizes.clear();
        for (int data = 0; data < shard_.datas(); ++data)
            for (int rank = 0; rank < cut.parts; ++rank)
                room_.sent_sizes.push_back(static_cast<int64_t>(room_.pairs[data].size()) * cut.width(rank) * sizeof(float));
        const auto pairs_before = [&](int slot) {  // among this group's own choices
            return rows && slot ? by_expert.counts[slot - 1] : 0;
        };
        for (int rank = 0; rank < shard_.stage.size; ++rank) {
            const int64_t pairs = pairs_before(first_slot(rank + 1)) - pairs_before(first_slot(rank));
            room_.received_sizes.push_back(pairs * own * static_cast<int64_t>(sizeof(float)));
        }
        exchanged_.exchange(shard_.stage, kPairsToOwners, room_.sent.data(), room_.sent_sizes.data(), outputs,
                            room_.received_sizes.data());
    }

    const Team& team_;
    const Shape& shape_;
    const Shard& shard_;
    const LayerWeights& layer_;
    SpreadRoom& room_;
    Exchanged& exchanged_;
    Cut slots_;
};

}  // namespace outrider
