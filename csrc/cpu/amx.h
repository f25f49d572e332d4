// AMX tiles under names of our own: eight tiles of 16 rows x 64 bytes, numbered by literals. Native, or
// (DDN_EMULATE_AMX) the same in plain C++, so that the kernels' source runs and is tested on machines without AMX.
#pragma once

#ifdef DDN_EMULATE_AMX
#include "emu/amx.h"
#else
#include <immintrin.h>

#include <cstdint>

namespace ddn::cpu {
namespace {

// Every tile 16 rows of 64 bytes. Once per thread before other tile operations, until DDN_TILE_RELEASE.
inline void tile_configure() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  // gcc 12's _tile_loadconfig tells the compiler that 8 bytes are read, and the rest of `config` is never written
  asm volatile("ldtilecfg %0" ::"m"(config));
}

}  // namespace
}  // namespace ddn::cpu

#define DDN_TILE_RELEASE() _tile_release()
// What was written before it is in memory when tiles are loaded after it: gcc 12 does not know that loads read memory.
#define DDN_TILE_FENCE() asm volatile("" ::: "memory")
#define DDN_TILE_ZERO(tile) _tile_zero(tile)
// 16 rows of 64 bytes, `stride` bytes apart (0: one row sixteen times)
#define DDN_TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
// the same for what is read once: does not push other data out of the cache
#define DDN_TILE_LOAD_STREAM(tile, from, stride) _tile_stream_loadd(tile, from, stride)
#define DDN_TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
// c[m][n] += sum over k of a[m][2k] * b[k][2n] + a[m][2k+1] * b[k][2n+1]: c 16x16 float32, a 16x32, b 16x16x2 bfloat16
#define DDN_TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)
#endif
