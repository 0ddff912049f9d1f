// A team of threads that runs one function at a time, in step.
//
// Every thread runs the same function and processes its share of each step's items, with barriers between steps. The
// assignment of items to threads changes no bits. Waiting threads spin for a while, then sleep in the kernel. If
// threads are slowed down by other processes on their cores, the team falls back to a single thread, and tries again
// after increasing intervals. Intervals are measured in time, not in runs: a run may be a short draft or a long
// prompt.
//
// Layout: a thread's share is a contiguous range of items. No sum crosses threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "delay.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace outrider {

constexpr int kBarrierSpins = 2000;  // pauses, about 40 us: longer than the skew of threads in step
constexpr int kTooLate = 3;          // late waits in one run that trigger the check for busy cores
constexpr std::chrono::milliseconds kLeastAlone{4}, kMostAlone{256};

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// Returns whether the value changed while spinning.
inline bool wait_while(const std::atomic<uint32_t>& value, uint32_t old, int spins) {
    for (int i = 0; i < spins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return true;
        pause();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
    return false;
}

class Barrier {
public:
    // Returns whether no thread had to sleep.
    bool wait(int size, int spins) {
        if (size == 1) return true;
        const uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size)) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.fetch_add(1, std::memory_order_seq_cst);
            phase_.notify_all();
            return true;
        }
        return wait_while(phase_, phase, spins);
    }

private:
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

// One thread's view of the team.
struct Team {
    int index, size;
    Barrier* gate;
    std::atomic<int>* late;  // how often a thread had to sleep while waiting

    void barrier() const {
        if (!gate->wait(size, kBarrierSpins)) late->fetch_add(1, std::memory_order_relaxed);
    }

    struct Share {
        long begin, end;
    };
    Share share(long items) const { return {items * index / size, items * (index + 1) / size}; }
};

class Pool {
    using Clock = std::chrono::steady_clock;

public:
    using Work = std::function<void(const Team&)>;

    explicit Pool(int threads) {
        for (int index = 1; index < threads; ++index) helpers_.emplace_back([this, index] { help(index); });
    }

    ~Pool() {
        begin(0);
        for (auto& helper : helpers_) helper.join();
    }

    int threads() const { return static_cast<int>(helpers_.size()) + 1; }

    // Runs `work` on up to `size` threads, including this one; returns when all are done. Helpers spin `spins` pauses
    // for the next run before they sleep.
    void run(int size, int spins, const Work& work) {
        size = std::min(size, threads());
        if (size <= 1 || Clock::now() < alone_until_) return work(Team{0, 1, &barrier_, &late_});
        late_.store(0, std::memory_order_relaxed);
        work_ = &work;
        spins_.store(spins, std::memory_order_relaxed);
        begin(static_cast<uint32_t>(size));
        const Team team{0, size, &barrier_, &late_};
        work(team);
        team.barrier();
        const bool crowded = late_.load(std::memory_order_relaxed) >= kTooLate && delays_.crowded();
        if (crowded) alone_until_ = Clock::now() + alone_;
        alone_ = crowded ? std::min(2 * alone_, kMostAlone) : kLeastAlone;
    }

private:
    // One word contains the run number and the number of threads. Threads beyond that number read nothing else.
    void begin(uint32_t size) {
        const uint32_t runs = start_.load(std::memory_order_relaxed) >> 16;
        // Not a plain store: that could become visible only after notify_all has checked for sleeping threads. A
        // thread that is just about to sleep would then never be woken.
        start_.exchange((runs + 1) << 16 | size, std::memory_order_seq_cst);
        start_.notify_all();
    }

    void help(int index) {
        delays_.watch_this_thread();
        for (uint32_t seen = 0;;) {
            wait_while(start_, seen, spins_.load(std::memory_order_relaxed));
            seen = start_.load(std::memory_order_acquire);
            const int size = seen & 0xFFFF;
            if (size == 0) return;
            if (index >= size) continue;
            const Team team{index, size, &barrier_, &late_};
            (*work_)(team);
            team.barrier();
        }
    }

    Barrier barrier_;
    std::atomic<int> late_{0};
    Delays delays_;
    alignas(64) std::atomic<uint32_t> start_{0};
    std::atomic<int> spins_{0};
    const Work* work_ = nullptr;
    Clock::time_point alone_until_{};
    std::chrono::milliseconds alone_ = kLeastAlone;  // next interval with one thread
    std::vector<std::thread> helpers_;  // last member: the threads use the others
};

}  // namespace outrider
