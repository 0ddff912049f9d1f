// Collectives between the ranks of one machine through shared memory: every rank writes its own part, and reads the
// other ranks' parts after they have signalled them.
//
// Each rank has two buffers, used alternately. It overwrites one only after all ranks have finished the step before
// the last, which used it. Waiting threads spin for a while, then sleep in the kernel until a deadline. A rank that
// leaves signals that. Larger parts are sent in pieces.
//
// Layout: received parts are in rank order. No sums: bytes are only copied.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <vector>

#include "pool.h"

namespace outrider {

// A group's interface for the kernels: a SharedGroup, or callbacks into Python. Both functions return 0 or an error
// code.
struct Group {
    int32_t rank, size;
    void* state;
    // all[size][bytes]: every rank's `bytes` bytes, in rank order. If `root` is not -1, only that rank receives them.
    int32_t (*gather)(void* state, int32_t what, const void* mine, int64_t bytes, int32_t root, void* all);
    // Part r of `sent` goes to rank r; the parts for this rank are stored in `received`, in rank order. Sizes are in
    // bytes.
    int32_t (*exchange)(void* state, int32_t what, const void* sent, const int64_t* sent_sizes, void* received,
                        const int64_t* received_sizes);
};

constexpr int kPurposes = 16;  // upper bound of purposes

struct Traffic {  // of one purpose, since the group was opened
    int64_t count, bytes, nanoseconds;  // bytes: sent by this rank, without its own part of an exchange
};

inline int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class SharedGroup {
public:
    // `memory` is `size_of(size, room)` zeroed bytes, the same for all ranks. `spins` and `timeout_ns` apply to each
    // wait.
    SharedGroup(void* memory, int rank, int size, int64_t room, int spins, int64_t timeout_ns)
        : members_(static_cast<Member*>(memory)), data_(static_cast<char*>(memory) + header(size)), rank_(rank), size_(size),
          room_(room), spins_(spins), timeout_ns_(timeout_ns) {}

    static int64_t size_of(int size, int64_t room) { return header(size) + 2 * room * size; }

    int32_t gather(int what, const void* mine, int64_t bytes, int root, void* all) {
        const int64_t began = now_ns();
        for (int64_t at = 0; at == 0 || at < bytes; at += room_) {
            const int64_t piece = std::min(room_, bytes - at);
            if (!begin_step()) return broken_;
            std::memcpy(own(), static_cast<const char*>(mine) + at, piece);
            publish();
            if (root >= 0 && root != rank_) continue;
            for (int other = 0; other < size_; ++other) {
                if (!wait(other, step_)) return broken_;
                std::memcpy(static_cast<char*>(all) + other * bytes + at, half(other), piece);
            }
        }
        count(what, bytes, began);
        return 0;
    }

    int32_t exchange(int what, const void* sent, const int64_t* sent_sizes, void* received, const int64_t* received_sizes) {
        const int64_t began = now_ns();
        std::vector<int64_t> places(size_ + 1), at(size_), totals(size_, 1), written(size_, 0);
        for (int r = 0; r < size_; ++r) places[r + 1] = places[r] + sent_sizes[r];
        const int64_t header = static_cast<int64_t>(places.size()) * sizeof(int64_t);
        // A stream: a header with the offset of each rank's part, then the parts. Its length follows from the header.
        const int64_t total = header + places[size_];
        for (int64_t from = 0; from < *std::max_element(totals.begin(), totals.end()); from += room_) {
            if (!begin_step()) return broken_;
            write_stream(places.data(), header, static_cast<const char*>(sent), from, std::min(room_, total - from));
            publish();
            int64_t to = 0;
            for (int other = 0; other < size_; to += received_sizes[other++]) {
                if (!wait(other, step_)) return broken_;
                if (from == 0) {
                    const auto* theirs = reinterpret_cast<const int64_t*>(half(other));
                    at[other] = header + theirs[rank_];
                    totals[other] = header + theirs[size_];
                }
                const int64_t first = std::max(at[other], from);
                const int64_t last = std::min(at[other] + received_sizes[other], from + room_);
                if (first < last)
                    std::memcpy(static_cast<char*>(received) + to + first - at[other], half(other) + first - from, last - first);
            }
        }
        count(what, places[size_] - sent_sizes[rank_], began);
        return 0;
    }

    // Ends the other ranks' waits for this rank.
    void leave() {
        members_[rank_].left.store(1, std::memory_order_seq_cst);
        wake(members_[rank_]);
    }

    Traffic traffic[kPurposes] = {};

private:
    struct alignas(64) Member {
        std::atomic<uint32_t> done, sleepers, left;
    };
    static_assert(std::atomic<uint32_t>::is_always_lock_free);

    static int64_t header(int size) { return (static_cast<int64_t>(size) * sizeof(Member) + 4095) / 4096 * 4096; }

    char* half(int rank) const { return data_ + (2 * rank + step_ % 2) * room_; }
    char* own() const { return half(rank_); }

    // Waits until all ranks have finished the step before the last. Call before this rank writes.
    bool begin_step() {
        for (int other = 0; other < size_ && !broken_; ++other)
            if (!wait(other, step_)) return false;
        ++step_;
        return !broken_;
    }

    void publish() {
        members_[rank_].done.store(step_, std::memory_order_seq_cst);
        if (members_[rank_].sleepers.load(std::memory_order_seq_cst)) wake(members_[rank_]);
    }

    static bool reached(uint32_t done, uint32_t step) { return static_cast<int32_t>(done - step) >= 0; }

    bool wait(int other, uint32_t step) {
        Member& member = members_[other];
        for (int i = 0; i <= spins_; ++i) {
            if (reached(member.done.load(std::memory_order_acquire), step)) return true;
            pause();
        }
        const int64_t deadline = now_ns() + timeout_ns_;
        for (;;) {
            sleep(member, step);
            if (reached(member.done.load(std::memory_order_acquire), step)) return true;
            const bool left = member.left.load(std::memory_order_acquire);
            if (!left && now_ns() < deadline) continue;
            broken_ = 2 * (other + 1) + left;
            return false;
        }
    }

    void sleep(Member& member, uint32_t step) const {
        member.sleepers.fetch_add(1, std::memory_order_seq_cst);
        const uint32_t done = member.done.load(std::memory_order_seq_cst);
        const timespec most{0, static_cast<long>(std::clamp<int64_t>(timeout_ns_, 1, 50'000'000))};
        if (!reached(done, step) && !member.left.load(std::memory_order_seq_cst))
            syscall(SYS_futex, &member.done, FUTEX_WAIT, done, &most, nullptr, 0);
        member.sleepers.fetch_sub(1, std::memory_order_seq_cst);
    }

    static void wake(Member& member) { syscall(SYS_futex, &member.done, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }

    // Copies bytes [from, from + count) of header and parts into this rank's buffer.
    void write_stream(const int64_t* places, int64_t header, const char* parts, int64_t from, int64_t count) {
        char* to = own();
        if (count <= 0) return;
        const int64_t of_header = std::clamp<int64_t>(header - from, 0, count);
        std::memcpy(to, reinterpret_cast<const char*>(places) + from, of_header);
        if (count > of_header) std::memcpy(to + of_header, parts + (from + of_header - header), count - of_header);
    }

    void count(int what, int64_t bytes, int64_t began) {
        traffic[what].count += 1;
        traffic[what].bytes += bytes;
        traffic[what].nanoseconds += now_ns() - began;
    }

    Member* members_;
    char* data_;
    int rank_, size_;
    int64_t room_;
    int spins_;
    int64_t timeout_ns_;
    uint32_t step_ = 0;
    int32_t broken_ = 0;  // 2 * (rank + 1) of the late rank, plus 1 if it has left
};

inline int32_t gather_shared(void* group, int32_t what, const void* mine, int64_t bytes, int32_t root, void* all) {
    return static_cast<SharedGroup*>(group)->gather(what, mine, bytes, root, all);
}

inline int32_t exchange_shared(void* group, int32_t what, const void* sent, const int64_t* sent_sizes, void* received,
                               const int64_t* received_sizes) {
    return static_cast<SharedGroup*>(group)->exchange(what, sent, sent_sizes, received, received_sizes);
}

}  // namespace outrider
