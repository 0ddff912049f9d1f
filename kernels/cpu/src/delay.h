// Whether others use the cores that a team runs on: how long its threads were ready to run and did not, as Linux counts.
//
// Times only: how many threads a round runs on changes no bit of it.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <mutex>
#include <vector>

namespace outrider {

// Of the time since it was last asked: two threads that wait for half of it are no faster than one. Other threads of
// this process, which hand tokens on, make one wait for a tenth.
constexpr double kCrowded = 0.33;
constexpr double kLeastAsked = 5e6;  // ns to ask about: in less, one thread that wakes for a moment is much

class Delays {
public:
    ~Delays() {
        for (const int file : files_) close(file);
    }

    // By each thread but the one that asks. Threads without a counter are left out.
    void watch_this_thread() {
        const int file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
        if (file < 0) return;
        const std::lock_guard<std::mutex> guard(door_);
        files_.push_back(file);
    }

    // Whether a watched thread had to wait for its core for much of the time since this was last asked. True without
    // counters: then only the time that threads wait for one another is known.
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
