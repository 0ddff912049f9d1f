// A team of threads that runs one function at a time, in step.
//
// Every thread runs the same function and takes its share of each step's items; barriers stand between steps. Which
// thread takes an item never changes a bit. Waiting threads spin for a while, then sleep in the kernel. A team whose
// members keep one another waiting because others use the cores gives way to a single thread, and is tried again after
// ever longer times. These are times, not runs: a run may be a draft, or a long prompt.
//
// Layout: a thread's share is a range of items that lie side by side. No sum crosses threads.
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

constexpr int kBarrierSpins = 2000;  // pauses, some 40 us: more than threads in step are apart
constexpr int kTooLate = 3;          // waits in one run that ask whether a core is another's
constexpr std::chrono::milliseconds kLeastAlone{4}, kMostAlone{256};

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// Whether spinning was enough.
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
    // Whether the others were there in time.
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
    std::atomic<int>* late;  // how often one had to sleep for the others

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

    // Runs `work` on up to `size` threads, this one among them; returns when all are done. Helpers spin `spins` pauses
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
    // One word says that there is work and for how many: who is not among them reads nothing else.
    void begin(uint32_t size) {
        const uint32_t runs = start_.load(std::memory_order_relaxed) >> 16;
        // Not a plain store: that could become visible after notify_all has looked for sleepers, and one that is just
        // going to sleep would never be woken.
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
    std::chrono::milliseconds alone_ = kLeastAlone;  // next time
    std::vector<std::thread> helpers_;  // last: they use the rest
};

}  // namespace outrider
