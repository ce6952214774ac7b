// Convolution with 3 x 3 kernels and stride 1 by minimal filtering, F(2x2, 3x3): Lavin and Gray, "Fast Algorithms for
// Convolutional Neural Networks", 2016. Of a tile d of 4 x 4 pixels it makes 2 x 2 convolved ones with 16 products for each
// pair of channels where the sum as it is written takes 36:
//   Y = A^T [sum over ci of (G w G^T) * (B^T d B)] A
//         | 1  0 -1  0 |            | 2  0  0 |
//   B^T = | 0  1  1  0 |    G = 1/2 | 1  1  1 |    A^T = | 1  1  1  0 |
//         | 0 -1  1  0 |            | 1 -1  1 |          | 0  1 -1 -1 |
//         | 0  1  0 -1 |            | 0  0  2 |
// The elements (i, j) of all tiles and channels form a matrix each, e = 4 i + j, so the sums are 16 matrix products. Its
// adjoint makes the gradients: Z = A dY A^T, then dW = G^T (V^T Z) G with V = B^T d B, and dx = sum of B (Z U^T) B^T with U = G
// w G^T. The sums are shorter than those of the direct way and in float32 at least as exact; in bfloat16 the rounding of U, V
// and Z makes errors 1.7 times those of rounding w, d and dY. What is infinite or NaN spreads over its tile.
//
// Tile (s, t) starts at the convolved pixel (2 s, 2 t), for every band and part of an image; pixels outside count as zero.
#pragma once

#include "conv_tokenizer.h"
#include "pack.h"

namespace cct::CCT_ISA {

// out = M v for a vector v of vectors, over strides.
CCT_INLINE void input_line(const Vec (&d)[4], Vec (&out)[4]) {  // B^T
  out[0] = d[0] - d[2], out[1] = d[1] + d[2], out[2] = d[2] - d[1], out[3] = d[1] - d[3];
}
CCT_INLINE void input_line_adjoint(const Vec (&v)[4], Vec (&out)[4]) {  // B
  out[0] = v[0], out[1] = v[1] - v[2] + v[3], out[2] = v[1] + v[2] - v[0], out[3] = Vec{} - v[3];
}
CCT_INLINE void output_line(const Vec (&m)[4], Vec (&out)[2]) {  // A^T
  out[0] = m[0] + m[1] + m[2], out[1] = m[1] - m[2] - m[3];
}
CCT_INLINE void output_line_adjoint(const Vec (&y)[2], Vec (&out)[4]) {  // A
  out[0] = y[0], out[1] = y[0] + y[1], out[2] = y[0] - y[1], out[3] = Vec{} - y[1];
}

// The pixels of a tile in channel-last rows from y0 on; those outside are at `outside`.
template <int N, typename Pixel>
CCT_INLINE void tile_pixels(int64_t y, int64_t x, int64_t height, int64_t width, int64_t y0, int64_t channels, Pixel* rows,
                            Pixel* outside, Pixel* (&out)[N][N]) {
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j) {
      const bool inside = y + i >= 0 && y + i < height && x + j >= 0 && x + j < width;
      out[i][j] = inside ? rows + ((y + i - y0) * width + x + j) * channels : outside;
    }
}

// V (16, rows, Cin) = B^T d B of the tile rows [s0, s1). `image` holds the input rows from y0 on, `zeros` Cin of them.
template <typename T>
void input_tiles(const ConvArgs& a, const float* image, int64_t y0, int64_t s0, int64_t s1, const float* zeros, int64_t rows,
                 T* V) {
  const int64_t step = rows * a.Cin;
  for (int64_t s = s0; s < s1; ++s)
    for (int64_t t = 0; t < tile_columns(a); ++t, V += a.Cin) {
      const float* pixel[4][4];
      tile_pixels(2 * s - a.conv.ph, 2 * t - a.conv.pw, a.H, a.W, y0, a.Cin, image, zeros, pixel);
      for (int64_t c = 0; c < a.Cin; c += kLanes) {
        Vec part[4][4];  // part[j] = column j of B^T d
        for (int j = 0; j < 4; ++j) {
          const Vec d[4] = {load(pixel[0][j] + c), load(pixel[1][j] + c), load(pixel[2][j] + c), load(pixel[3][j] + c)};
          input_line(d, part[j]);
        }
        for (int i = 0; i < 4; ++i) {
          const Vec d[4] = {part[0][i], part[1][i], part[2][i], part[3][i]};
          Vec v[4];
          input_line(d, v);
          for (int j = 0; j < 4; ++j) store(V + (4 * i + j) * step + c, v[j]);
        }
      }
    }
}

// The adjoint: dx += B dV B^T, dV (16, tiles, Cin) with whole panels of memory a tile. `outside` takes what falls outside the
// rows y0 to y1 of dx.
static void input_tiles_adjoint(const ConvArgs& a, const float* dV, int64_t s0, int64_t s1, float* dx, int64_t y0, int64_t y1,
                                float* outside) {
  const int64_t ld = round_up64(a.Cin), step = (s1 - s0) * tile_columns(a) * ld;
  for (int64_t s = s0; s < s1; ++s)
    for (int64_t t = 0; t < tile_columns(a); ++t, dV += ld) {
      float* pixel[4][4];
      tile_pixels(2 * s - a.conv.ph - y0, 2 * t - a.conv.pw, y1 - y0, a.W, 0, a.Cin, dx, outside, pixel);
      for (int64_t c = 0; c < a.Cin; c += kLanes) {
        Vec part[4][4];
        for (int j = 0; j < 4; ++j) {
          Vec v[4];
          for (int i = 0; i < 4; ++i) v[i] = load(dV + (4 * i + j) * step + c);
          input_line_adjoint(v, part[j]);
        }
        for (int i = 0; i < 4; ++i) {
          const Vec v[4] = {part[0][i], part[1][i], part[2][i], part[3][i]};
          Vec d[4];
          input_line_adjoint(v, d);
          for (int j = 0; j < 4; ++j) store(pixel[i][j] + c, load(pixel[i][j] + c) + d[j]);
        }
      }
    }
}

// Y (2 x 2 pixels of 64 channels) = A^T M A of one tile; its matrices are `step` apart.
CCT_INLINE void output_tile(const float* M, int64_t step, float (&Y)[2][2][kPanel]) {
  for (int c = 0; c < kPanel; c += kLanes) {
    Vec part[4][2];
    for (int j = 0; j < 4; ++j) {
      Vec m[4];
      for (int i = 0; i < 4; ++i) m[i] = load(M + (4 * i + j) * step + c);
      output_line(m, part[j]);
    }
    for (int i = 0; i < 2; ++i) {
      const Vec m[4] = {part[0][i], part[1][i], part[2][i], part[3][i]};
      Vec y[2];
      output_line(m, y);
      for (int j = 0; j < 2; ++j) store(Y[i][j] + c, y[j]);
    }
  }
}

// Z (16, rows, 64) = A dY A^T of panel p and the tile rows [s0, s1); dconv (rows, Wc, Cp) holds the convolved rows r0 to r1.
template <typename T>
void output_tiles_adjoint(const ConvArgs& a, const T* dconv, int64_t r0, int64_t r1, int64_t s0, int64_t s1, int64_t p,
                          const T* zeros, int64_t rows, T* Z) {
  const int64_t step = rows * kPanel;
  for (int64_t s = s0; s < s1; ++s)
    for (int64_t t = 0; t < tile_columns(a); ++t, Z += kPanel) {
      const T* pixel[2][2];
      tile_pixels(2 * s - r0, 2 * t, r1 - r0, a.Wc, 0, a.Cp, dconv + p * kPanel, zeros, pixel);
      for (int c = 0; c < kPanel; c += kLanes) {
        Vec part[2][4];
        for (int j = 0; j < 2; ++j) {
          const Vec y[2] = {load(pixel[0][j] + c), load(pixel[1][j] + c)};
          output_line_adjoint(y, part[j]);
        }
        for (int i = 0; i < 4; ++i) {
          const Vec y[2] = {part[0][i], part[1][i]};
          Vec z[4];
          output_line_adjoint(y, z);
          for (int j = 0; j < 4; ++j) store(Z + (4 * i + j) * step + c, z[j]);
        }
      }
    }
}

// epilogue(r, c, values) for each convolved pixel of the rows r0 to r1 and 64 channels of panel p, from V of the tile rows
// [s0, s1) that hold them. M: scratch (16, kTileRows, 64).
template <typename T, typename Epilogue>
CCT_INLINE void winograd_pixels(const ConvArgs& a, const T* V, int64_t s0, int64_t s1, int64_t r0, int64_t r1, int64_t p,
                                float* M, Epilogue epilogue) {
  const int64_t columns = tile_columns(a), tiles = (s1 - s0) * columns, step = kTileRows * kPanel;
  for (int64_t first = 0, R; first < tiles; first += R) {
    R = tiles - first < kTileRows ? tiles - first : kTileRows;
    for (int e = 0; e < 16; ++e) {
      Panel<T> weight = weight_panel<T>(a.weight, e * panels(a.C) + p, a.Cin);
      weight.next += panels(a.C) * weight.bytes - weight.bytes;  // the same channels of the next matrix
      product<false>(R, a.Cin, V + (e * tiles + first) * a.Cin, a.Cin, weight, M + e * step, kPanel);
    }
    for (int64_t i = 0; i < R; ++i) {
      const int64_t r = 2 * (s0 + (first + i) / columns), c = 2 * ((first + i) % columns);
      alignas(64) float Y[2][2][kPanel];
      output_tile(M + i * kPanel, step, Y);
      for (int64_t y = 0; y < 2; ++y)
        for (int64_t x = 0; x < 2; ++x)
          if (r + y >= r0 && r + y < r1 && c + x < a.Wc) epilogue(r + y, c + x, Y[y][x]);
    }
  }
}

// What winograd_backward reads and adds to; rows of an image.
template <typename T>
struct WinogradPass {
  const float* image;  // the input rows from y0 on, null without dweight
  const T* dconv;      // the convolved rows r0 to r1
  int64_t y0, r0, r1;
  float* dweight;  // (16, Cin, Cp), or null
  float* dx;       // the input rows dx0 to dx1, zero at first, or null
  int64_t dx0, dx1;
  float *line, *dV;          // scratch
  T *V, *Z, *pairs, *panel;  // scratch; for groups of two: V as pairs of rows, one matrix of Z as a panel
};

// dweight (Cin, 64 of Cp) += V^T Z for matrix e: V (rows, Cin), Z (rows, 64).
template <typename T>
CCT_INLINE void add_filter_gradient(const ConvArgs& a, int e, int64_t rows, const T* Z, const WinogradPass<T>& w,
                                    float* dweight) {
  const T* V = (kGroup<T> == 1 ? w.V : w.pairs) + e * rows * a.Cin;
  if constexpr (kGroup<T> == 1) {
    transposed_product<true>(a.Cin, rows, V, a.Cin, panel_of_rows(Z), dweight, a.Cp);
  } else {
    pack_rows(Z, kPanel, w.panel, rows);
    transposed_product<true>(a.Cin, rows, V, a.Cin, panel_of(w.panel, rows), dweight, a.Cp);
  }
}

// The rows behind `tiles` of each of the 16 matrices (16, rows, columns).
template <typename T>
CCT_INLINE void zero_behind(int64_t tiles, int64_t rows, int64_t columns, T* m) {
  for (int e = 0; e < 16 && tiles < rows; ++e)
    std::memset((void*)(m + (e * rows + tiles) * columns), 0, (rows - tiles) * columns * sizeof(T));
}

// V^T Z into dweight, and B (Z U^T) B^T into dx.
template <typename T>
void winograd_backward(const ConvArgs& a, const WinogradPass<T>& w) {
  const int64_t P = panels(a.C), Q = panels(a.Cin), ld = Q * kPanel, last = (w.r1 + 1) / 2;
  float *zeros = w.line, *outside = w.line + larger(a.Cin, kPanel);
  for (int64_t c = 0; c < larger(a.Cin, kPanel); c += kLanes) store(zeros + c, Vec{}), store(outside + c, Vec{});
  for (int64_t s = w.r0 / 2, end; s < last; s = end) {
    end = smaller(last, s + a.tile_rows);
    const int64_t tiles = (end - s) * tile_columns(a);
    const int64_t rows = round_up(tiles, kGroup<T>);
    if (w.dweight) {
      input_tiles(a, w.image, w.y0, s, end, zeros, rows, w.V);
      zero_behind(tiles, rows, a.Cin, w.V);
      if constexpr (kGroup<T> > 1) interleave_rows(w.V, a.Cin, w.pairs, 2 * a.Cin, 16 * rows, a.Cin);
    }
    for (int64_t p = 0; p < P; ++p) {
      const int64_t depth = smaller(kPanel, a.C - p * kPanel);
      output_tiles_adjoint(a, w.dconv, w.r0, w.r1, s, end, p, reinterpret_cast<const T*>(zeros), rows, w.Z);
      zero_behind(tiles, rows, kPanel, w.Z);
      for (int e = 0; e < 16; ++e) {
        const T* Z = w.Z + e * rows * kPanel;
        if (w.dweight) add_filter_gradient(a, e, rows, Z, w, w.dweight + e * a.Cin * a.Cp + p * kPanel);
        for (int64_t q = 0; w.dx && q < Q; ++q) {
          Panel<T> weight = weight_panel<T>(a.weight_back, e * Q + q, a.C).from(p * kPanel);
          weight.bytes = 0;  // the next one's part does not lie in one piece
          float* out = w.dV + e * tiles * ld + q * kPanel;
          const int64_t columns = smaller(kPanel, a.Cin - q * kPanel);
          p ? product<true>(tiles, depth, Z, kPanel, weight, out, ld, columns)
            : product<false>(tiles, depth, Z, kPanel, weight, out, ld, columns);
        }
      }
    }
    if (w.dx) input_tiles_adjoint(a, w.dV, s, end, w.dx, w.dx0, w.dx1, outside);
  }
}

}  // namespace cct::CCT_ISA
