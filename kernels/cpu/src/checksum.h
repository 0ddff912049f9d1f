// A checksum of stored weights at memory speed. It detects damage, not tampering.
//
// Eight lanes take every eighth word. A lane's step is a bijection of both the word and the lane's state, so a change
// within one word is always detected. Any other change is missed with probability 2^-64, if words are independent.
#pragma once

#include <cstdint>
#include <cstring>

namespace outrider {

constexpr int kChecksumLanes = 8;

inline uint64_t mixed(uint64_t lane, uint64_t word) {
    const uint64_t sum = (lane ^ word) * 0x9E3779B97F4A7C15u;  // odd, so the product is a bijection
    return sum << 29 | sum >> 35;
}

inline uint64_t checksum(const unsigned char* bytes, int64_t size) {
    constexpr int64_t kBlock = kChecksumLanes * sizeof(uint64_t);
    uint64_t lanes[kChecksumLanes] = {}, words[kChecksumLanes];
    const auto take = [&](const unsigned char* block) {
        std::memcpy(words, block, kBlock);
        for (int lane = 0; lane < kChecksumLanes; ++lane) lanes[lane] = mixed(lanes[lane] + lane, words[lane]);
    };
    int64_t at = 0;
    for (; at + kBlock <= size; at += kBlock) take(bytes + at);
    unsigned char rest[kBlock] = {};
    std::memcpy(rest, bytes + at, size - at);
    take(rest);
    uint64_t sum = static_cast<uint64_t>(size);
    for (const uint64_t lane : lanes) sum = mixed(sum, lane);
    return sum;
}

}  // namespace outrider
