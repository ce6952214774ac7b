// What the host side of conv_tokenizer and its kernels share: arguments, and how an image is cut.
#pragma once

#include <cstdint>

#include "isa.h"
#include "scratch.h"

namespace cct {

struct Window {
  int64_t kh, kw, sh, sw, ph, pw;
};

struct ConvArgs {
  int64_t Cin, H, W, C, Cp, K, Hc, Wc, Ho, Wo;  // Cp: C rounded up to whole panels
  Window conv, pool;                            // without pooling: a window of one pixel
  bool relu, x_bf16, bf16, channels_last;       // storage of x, out, dout, dx; products; layout of x and dx
  bool winograd;                                // winograd.h; weights and dW are then its 16 matrices one after the other
  bool by_rows;                                 // forward without an im2col matrix
  const void* x;
  uint8_t* winner;  // (B, Ho * Wo, Cp), or null
  // forward
  void* out;                                          // (B, Ho * Wo, C)
  const void* weight;                                 // panels of W^T (K, C)
  const float* bias;                                  // (Cp)
  int64_t bands, slices;                              // shares of an image: of its pooled rows, of its panels
  int64_t band_pixels, image_size, Kp, block, group;  // scratch; pixels of an im2col matrix, panels of a convolved band
  int64_t tile_rows;                                  // rows of tiles (winograd.h) of a band, of a block in backward
  // backward
  const void* dout;                              // (B, Ho * Wo, C)
  const void* weight_back;                       // panels of W (C, K)
  void* dx;                                      // or null
  int64_t parts;                                 // parts of an image: shares of its convolved rows
  int64_t part_pixels, dx_size, chunk, columns;  // scratch; kernel rows of an im2col matrix, its columns in whole panels
  bool transpose_columns;                        // K <= C
};

// Sums of one thread, zero at first; null when not wanted.
struct ConvGradients {
  float *dweight, *dbias;  // (16 Cin, Cp) for winograd, (K, Cp) for transpose_columns, else (C, weight_stride); (Cp)
  int64_t weight_stride;
};

constexpr uint8_t kNoWinner = 255;

CCT_DECLARE(void conv_tokenizer_forward_bands(const ConvArgs& a, int64_t first, int64_t last, char* scratch))
CCT_DECLARE(void conv_tokenizer_backward_parts(const ConvArgs& a, int64_t first, int64_t last, const ConvGradients& g,
                                               char* scratch))

// ---- how an image is cut; each plan returns the bytes of scratch that it needs ----

constexpr int64_t kBudget = 768 * 1024;  // bytes that a band's largest matrix may take of the second-level cache

[[maybe_unused]] static int64_t divide_up(int64_t n, int64_t d) { return n <= 0 ? 0 : (n + d - 1) / d; }  // at least 0

// Shares of an image, at least `n` and at most its `rows`, so that a small batch divides evenly among the threads.
[[maybe_unused]] static int64_t balanced_shares(int64_t B, int64_t n, int64_t rows, int64_t threads) {
  const int64_t limit = smaller(rows, n + threads);
  for (; n < limit && B * n < 8 * threads && B * n % threads; ++n) {
  }
  return smaller(n, rows);
}

[[maybe_unused]] static int64_t pool_span(const ConvArgs& a, int64_t rows) {
  return smaller(a.Hc, (rows - 1) * a.pool.sh + a.pool.kh);
}
[[maybe_unused]] static int64_t conv_span(const ConvArgs& a, int64_t rows) {
  return smaller(a.H, (rows - 1) * a.conv.sh + a.conv.kh);
}

// Whether winograd.h computes this convolution, once the sizes in `a` are known. tiles: the CPU has tile registers, whose
// bfloat16 products take less time than the filtering.
[[maybe_unused]] static bool suits_winograd(const ConvArgs& a, bool tiles) {
  const Window& w = a.conv;
  return !(a.bf16 && tiles) && w.kh == 3 && w.kw == 3 && w.sh == 1 && w.sw == 1 && a.Cin >= 32 && a.Cin % 16 == 0 && a.Hc > 1 &&
         a.Wc > 1;
}
// Whether forward takes the kernel's rows as they lie in the image, one after the other, instead of an im2col matrix: a matrix
// of few pixels is all that fits the second-level cache beside weights that do not, and these then pass by for each.
[[maybe_unused]] static bool suits_rows(const ConvArgs& a) {
  return !a.bf16 && !a.winograd && a.conv.kw * a.Cin % 32 == 0 && a.K * a.Cp * 4 > kBudget && a.Wc >= 8;
}
[[maybe_unused]] static int64_t padded_width(const ConvArgs& a) {  // pixels of a line that all windows of a row see, or more
  return larger(a.conv.pw + a.W, (a.Wc - 1) * a.conv.sw + a.conv.kw);
}
[[maybe_unused]] static int64_t tile_columns(const ConvArgs& a) { return (a.Wc + 1) / 2; }
constexpr int64_t kTileRows = 32;                                    // of a product in forward
[[maybe_unused]] static int64_t backward_tiles(const ConvArgs& a) {  // of a block, an even number
  return (a.tile_rows * tile_columns(a) + 1) / 2 * 2;
}

[[maybe_unused]] static int64_t plan_forward(ConvArgs& a, int64_t B, int64_t threads) {
  const int64_t bytes_per = a.bf16 ? 2 : 4;
  a.Kp = divide_up(a.K, 32) * 32;
  const int64_t pixel = a.winograd ? 8 * a.Cin : a.by_rows ? 128 : a.Kp + 64;
  const int64_t fit = kBudget / (pixel * bytes_per) / a.Wc;  // convolved rows
  const int64_t rows = larger(a.winograd ? 4 : 8, fit < a.pool.kh ? 0 : (fit - a.pool.kh) / a.pool.sh + 1);
  // Few images: neighbouring bands convolve common rows twice, slices of the panels only share an im2col matrix.
  const int64_t bands = divide_up(a.Ho, rows);
  a.slices = 1;
  for (int64_t s = 1; s <= a.Cp / 64 && B * bands < 8 * threads; ++s)
    if (a.Cp / 64 % s == 0 && B * bands * s % threads == 0) {
      a.slices = s;
      break;
    }
  a.bands = balanced_shares(B * a.slices, bands, a.Ho, threads);
  const int64_t height = pool_span(a, divide_up(a.Ho, a.bands));
  a.band_pixels = height * a.Wc;
  a.image_size = conv_span(a, height) * a.W * a.Cin;
  a.block = divide_up(a.band_pixels, 32) * 32;
  a.group = 1;
  if (a.winograd) {
    a.tile_rows = height / 2 + 1;
    a.image_size = smaller(a.H, 2 * a.tile_rows + 2) * a.W * a.Cin;
    return scratch_bytes(
        {a.image_size, a.Cin, a.tile_rows * tile_columns(a) * 16 * a.Cin, 16 * kTileRows * 64, a.band_pixels * 64});
  }
  if (a.by_rows) {
    a.image_size = conv_span(a, height) * padded_width(a) * a.Cin;
    return scratch_bytes({a.image_size, a.band_pixels * 64});
  }
  if (a.block * a.Kp * bytes_per > 2 * kBudget) {  // all panels for one im2col matrix after the other
    a.block = larger(32, kBudget / (a.Kp * bytes_per) / 32 * 32);
    a.group = a.Cp / 64 / a.slices;
  }
  return scratch_bytes({a.image_size, (a.block + 32) * a.Kp, a.band_pixels * a.group * 64});
}

// a.dx tells whether the gradient of x is wanted. Parts: a row's share of dconv and dx.
[[maybe_unused]] static int64_t plan_backward(ConvArgs& a, int64_t B, int64_t threads) {
  const int64_t bytes_per = a.bf16 ? 2 : 4, run = a.conv.kw * a.Cin, halo = a.dx ? (a.conv.kh - 1) / a.conv.sh : 0;
  const int64_t row_bytes = a.Wc * a.Cp * bytes_per + (a.dx ? smaller(a.H, a.conv.sh) * a.W * a.Cin * 4 : 0);
  const int64_t rows = larger(1, larger(4 * halo, 2 * kBudget / row_bytes));
  a.parts = balanced_shares(larger(B, 1), divide_up(a.Hc, rows), a.Hc, threads);
  const int64_t own = divide_up(a.Hc, a.parts);
  a.part_pixels = smaller(a.Hc, own + halo) * a.Wc;
  a.image_size = conv_span(a, own) * a.W * a.Cin;
  a.dx_size = a.dx ? smaller(a.H, own * a.conv.sh + a.conv.kh) * a.W * a.Cin : 0;
  a.chunk = larger(1, smaller(640 / run, a.conv.kh));
  a.columns = round_up64(a.chunk * run);
  a.block = larger(32, smaller(kBudget / (a.columns * bytes_per) / 32 * 32, 512));
  a.transpose_columns = a.K <= a.C;
  if (a.winograd) {
    a.tile_rows = larger(1, smaller(64 / tile_columns(a), (a.part_pixels / a.Wc + 1) / 2));
    a.image_size = smaller(a.H, own + 4) * a.W * a.Cin;
    const int64_t rows = backward_tiles(a), all = 16 * rows;
    return scratch_bytes({2 * a.Cp, (a.part_pixels + 32) * a.Cp, a.image_size, a.dx_size, 2 * larger(a.Cin, 64),
                          all * round_up64(a.Cin), all * a.Cin, all * 64, a.bf16 ? all * a.Cin : 0, a.bf16 ? rows * 64 : 0});
  }
  const int64_t matrix = (a.block + 32) * larger(a.columns, a.Cp), dconv = (a.part_pixels + 32) * a.Cp;
  return scratch_bytes({2 * a.Cp, dconv, a.image_size, matrix, larger(matrix, dconv), matrix, a.block * 64, a.dx_size});
}

// The sums of dW as ConvGradients describes them.
[[maybe_unused]] static int64_t weight_gradient_rows(const ConvArgs& a) {
  return a.winograd ? 16 * a.Cin : a.transpose_columns ? a.K : a.C;
}
[[maybe_unused]] static int64_t weight_gradient_stride(const ConvArgs& a) {
  return a.winograd || a.transpose_columns ? a.Cp : round_up64(a.K) + 64;  // chunks end in whole panels
}

}  // namespace cct
