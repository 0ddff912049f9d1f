// Detects whether other processes use a team's cores: how long its threads were runnable but not running, as Linux
// counts.
//
// This changes timing only: the number of threads changes no bit of a round.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <mutex>
#include <vector>

namespace outrider {

// Share of the time since the last call. If two threads wait for half of it, they are no faster than one. Other
// threads of this process, which deliver tokens, account for about a tenth.
constexpr double kCrowded = 0.33;
constexpr double kLeastAsked = 5e6;  // ns between two calls: in a shorter time, one short wake-up would count for too much

class Delays {
public:
    ~Delays() {
        for (const int file : files_) close(file);
    }

    // Call it in each thread except the one that calls crowded(). Threads without a counter are ignored.
    void watch_this_thread() {
        const int file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
        if (file < 0) return;
        const std::lock_guard<std::mutex> guard(door_);
        files_.push_back(file);
    }

    // Whether a watched thread waited for its core for a large share of the time since the last call. Without counters
    // it returns true: then only the threads' waits for each other are known.
    bool crowded() {
        const std::lock_guard<std::mutex> guard(door_);
        if (files_.empty()) return true;
        long long delayed = 0;  // ns
        for (const int file : files_) delayed += delay_of(file);
        const auto now = std::chrono::steady_clock::now();
        const double since = std::chrono::duration<double, std::nano>(now - asked_).count();
        if (since < kLeastAsked) return false;
        const bool much = static_cast<double>(delayed - delayed_) > kCrowded * since;
        asked_ = now;
        delayed_ = delayed;
        return much;
    }

private:
    static long long delay_of(int file) {
        char text[96] = "";
        long long ran = 0, delayed = 0;
        if (pread(file, text, sizeof text - 1, 0) > 0) std::sscanf(text, "%lld %lld", &ran, &delayed);
        return delayed;
    }

    std::mutex door_;
    std::vector<int> files_;
    long long delayed_ = 0;
    std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();
};

}  // namespace outrider
