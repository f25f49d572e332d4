// AMX tiles in plain C++, one set per thread. Aborts where the hardware would fault.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace ddn::emu {

struct Tiles {
  bool configured = false;
  unsigned char bytes[8][16][64];
};
inline thread_local Tiles tiles;

inline Tiles& configured_tiles() {
  if (!tiles.configured) {
    std::fputs("AMX emulation: a tile is used before tile_configure or after DDN_TILE_RELEASE\n", stderr);
    std::abort();
  }
  return tiles;
}

inline void tile_zero(int tile) {
  std::memset(configured_tiles().bytes[tile], 0, sizeof tiles.bytes[tile]);
}

inline void tile_load(int tile, const void* from, long stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(configured_tiles().bytes[tile][row], static_cast<const char*>(from) + row * stride, 64);
}

inline void tile_store(int tile, void* to, long stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, configured_tiles().bytes[tile][row], 64);
}

inline float widen(const unsigned char* bfloat16) {
  uint16_t bits;
  std::memcpy(&bits, bfloat16, sizeof bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Denormals count as zero, and a denormal result is zero, whatever MXCSR says.
inline float flushed(float value) {
  return std::fabs(value) < FLT_MIN ? std::copysign(0.0f, value) : value;
}

// In the manual's order, so that bits are the instruction's (but a NaN's): even and odd products in two sums from zero,
// both added, and that added to c.
inline void tile_dot(int c, int a, int b) {
  Tiles& t = configured_tiles();
  float right[16][2][16];
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < 16; ++n)
      for (int j = 0; j < 2; ++j) right[k][j][n] = flushed(widen(&t.bytes[b][k][4 * n + 2 * j]));
  for (int m = 0; m < 16; ++m) {
    float part[2][16] = {}, sums[16];
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 2; ++j) {
        const float left = flushed(widen(&t.bytes[a][m][4 * k + 2 * j]));
        for (int n = 0; n < 16; ++n) part[j][n] = flushed(std::fma(left, right[k][j][n], part[j][n]));
      }
    std::memcpy(sums, t.bytes[c][m], sizeof sums);
    for (int n = 0; n < 16; ++n) sums[n] = flushed(flushed(sums[n]) + flushed(part[0][n] + part[1][n]));
    std::memcpy(t.bytes[c][m], sums, sizeof sums);
  }
}

}  // namespace ddn::emu

namespace ddn::cpu {
inline void tile_configure() {
  emu::tiles.configured = true;
  std::memset(emu::tiles.bytes, 0, sizeof emu::tiles.bytes);
}
}  // namespace ddn::cpu

#define DDN_TILE_RELEASE() (void)(ddn::emu::tiles.configured = false)
#define DDN_TILE_FENCE() (void)0
#define DDN_TILE_ZERO(tile) ddn::emu::tile_zero(tile)
#define DDN_TILE_LOAD(tile, from, stride) ddn::emu::tile_load(tile, from, stride)
#define DDN_TILE_LOAD_STREAM(tile, from, stride) ddn::emu::tile_load(tile, from, stride)
#define DDN_TILE_STORE(tile, to, stride) ddn::emu::tile_store(tile, to, stride)
#define DDN_TILE_DOT(c, a, b) ddn::emu::tile_dot(c, a, b)
