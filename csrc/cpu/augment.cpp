// Augmentation of uint8 images: a short program of steps for each image, then mixing, normalisation and erasing in one pass.
//
// The operations are those of Pillow, in its order of floating-point operations, and cct/data/augment/pixels.py and mixing.py
// state them in PyTorch: both give the same bits, which is why this file is compiled without fused multiply-adds.
#include <cstdint>

#include "isa.h"
#include "scratch.h"

namespace cct {

// Numbers of cct/data/augment/program.py
enum Operation : int64_t {
  kIdentity,
  kShift,
  kResize,
  kAffine,
  kAutoContrast,
  kEqualize,
  kInvert,
  kPosterize,
  kSolarize,
  kSolarizeAdd,
  kBrightness,
  kContrast,
  kColor,
  kSharpness,
  kOperations
};
constexpr double kNearest = 0, kBicubic = 2;  // filters; 1 is bilinear
constexpr int64_t kArguments = 7, kFlips = 5, kFilter = 6;
constexpr int64_t kTaps = 5;  // of a resampling that does not shrink

struct AugmentArgs {
  int64_t C, H, W, steps;
  const uint8_t* fill;  // (C)
};

// Scratch of an image: a copy of it, and the buffers of a resize or a grey image.
[[maybe_unused]] static int64_t augment_scratch(const AugmentArgs& a) {
  const int64_t copy = (a.C * a.H * a.W + 3) / 4, rows = ((a.H + kTaps) * a.W + 3) / 4;
  return larger(scratch_bytes({copy, a.W, kTaps * a.W, a.H, kTaps * a.H, a.W + kTaps, rows}), scratch_bytes({copy, a.H * a.W}));
}

// One image after normalisation; `fill` is the colour outside, 0 pixel, 1 rand, 2 const.
struct FinishArgs {
  int64_t C, H, W, boxes;
  int64_t mode;
  const float *scale, *shift;  // (C)
  const float* normals;        // (65536)
};

CCT_DECLARE(void augment_image(const AugmentArgs& a, const int64_t* codes, const double* args, const uint8_t* image,
                               uint8_t* out, char* scratch))
CCT_DECLARE(void finish_image(const FinishArgs& a, const uint8_t* image, const uint8_t* partner, float lam, float rest,
                              const int64_t* box, const int64_t* erase, float* out))

}  // namespace cct

#if defined(CCT_ISA)  // ------------------------------------------------------------------------------ kernels, once per set
#include "simd.h"

namespace cct::CCT_ISA {
namespace {

// v in [low, high]; low for NaN.
CCT_INLINE double clamped(double v, double low, double high) { return v > low ? (v < high ? v : high) : low; }

// The same, without its fraction.
CCT_INLINE int64_t whole(double v, int64_t low, int64_t high) { return int64_t(clamped(v, double(low), double(high))); }

CCT_INLINE int64_t clip(int64_t v, int64_t last) { return v < 0 ? 0 : v > last ? last : v; }

template <typename T = int32_t>
CCT_INLINE T floor_of(double v) {
  const T i = T(v);
  return i - (double(i) > v);
}

CCT_INLINE uint8_t to_pixel(float v) { return uint8_t(v > 0.f ? (v < 255.f ? v : 255.f) : 0.f); }

void flip(const AugmentArgs& a, int64_t flips, uint8_t* image) {
  for (int64_t row = 0; flips & 1 && row < a.C * a.H; ++row)
    for (uint8_t *left = image + row * a.W, *right = left + a.W - 1; left < right; ++left, --right) {
      const uint8_t kept = *left;
      *left = *right;
      *right = kept;
    }
  for (int64_t c = 0; flips & 2 && c < a.C; ++c)
    for (int64_t y = 0; y < a.H / 2; ++y)
      for (int64_t x = 0; x < a.W; ++x) {
        uint8_t *upper = image + (c * a.H + y) * a.W + x, *lower = image + (c * a.H + a.H - 1 - y) * a.W + x;
        const uint8_t kept = *upper;
        *upper = *lower;
        *lower = kept;
      }
}

void shift(const AugmentArgs& a, const double* arg, const uint8_t* image, uint8_t* out) {
  const int64_t dy = whole(arg[0], -a.H, a.H), dx = whole(arg[1], -a.W, a.W);
  const int64_t first = dx < 0 ? -dx : 0, last = dx > 0 ? a.W - dx : a.W;  // columns of `out` that the image covers
  for (int64_t c = 0; c < a.C; ++c)
    for (int64_t y = 0; y < a.H; ++y, out += a.W) {
      std::memset(out, 0, a.W);
      if (y + dy >= 0 && y + dy < a.H && first < last)
        std::memcpy(out + first, image + (c * a.H + y + dy) * a.W + first + dx, last - first);
    }
}

CCT_INLINE double key(double x, bool cubic) {
  x = x < 0 ? -x : x;
  if (!cubic) return x < 1 ? 1 - x : 0;
  if (x < 1) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// For each of `size` pixels the first of `length` source pixels that count, and kTaps weights with 22 bits behind the point:
// weight[t * size + i] belongs to source pixel first[i] + t.
void resampling(int64_t length, int64_t size, bool cubic, int32_t* first, int32_t* weight) {
  const double scale = double(length) / double(size), reach = cubic ? 2.0 : 1.0;
  for (int64_t i = 0; i < size; ++i) {
    const double center = (double(i) + 0.5) * scale;
    const int64_t low = clip(floor_of(center - reach + 0.5), length), high = clip(floor_of(center + reach + 0.5), length);
    double part[kTaps] = {}, total = 0;
    for (int64_t t = 0; t < high - low && t < kTaps; ++t) total += part[t] = key(double(t + low) - center + 0.5, cubic);
    first[i] = int32_t(low);
    for (int64_t t = 0; t < kTaps; ++t) {
      const double w = part[t] / total * 4194304.0;
      weight[t * size + i] = int32_t(w < 0 ? w - 0.5 : w + 0.5);
    }
  }
}

CCT_INLINE uint8_t rounded(int32_t total) {
  const int32_t v = (total + (1 << 21)) >> 22;
  return uint8_t(v < 0 ? 0 : v > 255 ? 255 : v);
}

void horizontal(const int32_t* __restrict line, const int32_t* __restrict first, const int32_t* __restrict weight, int64_t W,
                uint8_t* __restrict out) {
  for (int64_t x = 0; x < W; ++x) {
    const int32_t* from = line + first[x];
    out[x] = rounded(from[0] * weight[x] + from[1] * weight[W + x] + from[2] * weight[2 * W + x] + from[3] * weight[3 * W + x] +
                     from[4] * weight[4 * W + x]);
  }
}

void vertical(const uint8_t* __restrict rows, const int32_t* w, int64_t W, uint8_t* __restrict out) {
  for (int64_t x = 0; x < W; ++x)
    out[x] =
        rounded(rows[x] * w[0] + rows[W + x] * w[1] + rows[2 * W + x] * w[2] + rows[3 * W + x] * w[3] + rows[4 * W + x] * w[4]);
}

void resize(const AugmentArgs& a, const double* arg, const uint8_t* image, uint8_t* out, char* scratch) {
  const int64_t top = whole(arg[0], 0, a.H - 1), left = whole(arg[1], 0, a.W - 1);
  const int64_t height = whole(arg[2], 1, a.H - top), width = whole(arg[3], 1, a.W - left);
  const bool cubic = arg[kFilter] == kBicubic;
  int32_t *first = take<int32_t>(scratch, a.W), *weight = take<int32_t>(scratch, a.W * kTaps);
  int32_t *first_row = take<int32_t>(scratch, a.H), *row_weight = take<int32_t>(scratch, a.H * kTaps);
  // Taps behind the last pixel have weight 0, but are read.
  int32_t* line = take<int32_t>(scratch, a.W + kTaps);
  uint8_t* rows = take<uint8_t>(scratch, (a.H + kTaps) * a.W);
  resampling(width, a.W, cubic, first, weight);
  resampling(height, a.H, cubic, first_row, row_weight);
  for (int64_t t = 0; t < kTaps; ++t) line[width + t] = 0;
  std::memset(rows + height * a.W, 0, kTaps * a.W);
  for (int64_t c = 0; c < a.C; ++c) {
    for (int64_t y = 0; y < height; ++y) {
      const uint8_t* source = image + (c * a.H + top + y) * a.W + left;
      for (int64_t x = 0; x < width; ++x) line[x] = source[x];
      horizontal(line, first, weight, a.W, rows + y * a.W);
    }
    for (int64_t y = 0; y < a.H; ++y, out += a.W) {
      int32_t w[kTaps];
      for (int64_t t = 0; t < kTaps; ++t) w[t] = row_weight[t * a.H + y];
      vertical(rows + first_row[y] * a.W, w, a.W, out);
    }
  }
}

CCT_INLINE double cubic_of(double v1, double v2, double v3, double v4, double d) {
  return v2 + d * ((-v1 + v3) + d * ((2 * (v1 - v2) + v3 - v4) + d * (-v1 + v2 - v3 + v4)));
}

void affine(const AugmentArgs& a, const double* arg, const uint8_t* image, uint8_t* out) {
  const int64_t plane = a.H * a.W;
  const bool cubic = arg[kFilter] == kBicubic;
  for (int64_t y = 0; y < a.H; ++y)
    for (int64_t x = 0; x < a.W; ++x) {
      const double px = double(x) + 0.5, py = double(y) + 0.5;
      double u = arg[0] * px + arg[1] * py + arg[2], v = arg[3] * px + arg[4] * py + arg[5];
      uint8_t* target = out + y * a.W + x;
      if (!(u >= 0 && u < double(a.W) && v >= 0 && v < double(a.H))) {
        for (int64_t c = 0; c < a.C; ++c) target[c * plane] = a.fill[c];
        continue;
      }
      u -= 0.5;
      v -= 0.5;
      const int64_t left = floor_of(u), above = floor_of(v);
      const double du = u - double(left), dv = v - double(above);
      int64_t columns[4], rows[4];
      for (int64_t i = 0; i < 4; ++i) columns[i] = clip(left + i - 1, a.W - 1), rows[i] = clip(above + i - 1, a.H - 1) * a.W;
      for (int64_t c = 0; c < a.C; ++c) {
        const uint8_t* source = image + c * plane;
        auto at = [&](int64_t i, int64_t j) { return double(source[rows[i] + columns[j]]); };
        double value;
        if (cubic) {
          auto across = [&](int64_t i) { return cubic_of(at(i, 0), at(i, 1), at(i, 2), at(i, 3), du); };
          value = cubic_of(across(0), across(1), across(2), across(3), dv);
        } else {
          const double upper = at(1, 1) + (at(1, 2) - at(1, 1)) * du, lower = at(2, 1) + (at(2, 2) - at(2, 1)) * du;
          value = upper + (lower - upper) * dv;
        }
        target[c * plane] = uint8_t(whole(value, 0, 255));
      }
    }
}

// The nearest pixel, in 16.16 fixed point.
void affine_nearest(const AugmentArgs& a, const double* arg, const uint8_t* image, uint8_t* out) {
  constexpr int64_t kLimit = int64_t(1) << 40;  // far outside; sums of these do not overflow
  auto fixed = [](double v) { return floor_of<int64_t>(clamped(v * 65536 + 0.5, double(-kLimit), double(kLimit))); };
  const int64_t plane = a.H * a.W, xx = fixed(arg[0]), xy = fixed(arg[1]), yx = fixed(arg[3]), yy = fixed(arg[4]);
  const int64_t x0 = fixed(arg[2] + arg[0] * 0.5 + arg[1] * 0.5), y0 = fixed(arg[5] + arg[3] * 0.5 + arg[4] * 0.5);
  for (int64_t y = 0; y < a.H; ++y)
    for (int64_t x = 0; x < a.W; ++x) {
      const int64_t u = (xx * x + xy * y + x0) >> 16, v = (yx * x + yy * y + y0) >> 16;
      const bool inside = u >= 0 && u < a.W && v >= 0 && v < a.H;
      for (int64_t c = 0; c < a.C; ++c) out[c * plane + y * a.W + x] = inside ? image[c * plane + v * a.W + u] : a.fill[c];
    }
}

CCT_INLINE uint8_t blend(int32_t first, int32_t second, float factor) {
  return to_pixel(float(first) + factor * float(second - first));
}

// Pillow's grey value of pixel i.
CCT_INLINE int32_t grey(const AugmentArgs& a, const uint8_t* image, int64_t i) {
  const int64_t plane = a.H * a.W;
  if (a.C == 1) return image[i];
  return (image[i] * 19595 + image[plane + i] * 38470 + image[2 * plane + i] * 7471 + 0x8000) >> 16;
}

int32_t mean_grey(const AugmentArgs& a, const uint8_t* image) {
  int64_t total = 0;
  for (int64_t i = 0; i < a.H * a.W; ++i) total += grey(a, image, i);
  return int32_t(double(total) / double(a.H * a.W) + 0.5);
}

// The table of an operation whose values depend on the channel's histogram.
void histogram_table(int64_t code, const uint8_t* channel, int64_t pixels, uint8_t* table) {
  int64_t count[256] = {};
  for (int64_t i = 0; i < pixels; ++i) ++count[channel[i]];
  int32_t low = 0, high = 255;
  while (low < 255 && !count[low]) ++low;
  while (high > 0 && !count[high]) --high;
  const int64_t step = (pixels - count[high]) / 255;
  const double scale = 255.0 / double(high - low), offset = -double(low) * scale;
  int64_t before = step / 2;
  for (int32_t v = 0; v < 256; ++v) {
    if (code == kAutoContrast)
      table[v] = high <= low ? uint8_t(v) : uint8_t(whole(double(v) * scale + offset, 0, 255));
    else
      table[v] = step == 0 ? uint8_t(v) : uint8_t(clip(before / step, 255));
    before += count[v];
  }
}

uint8_t tone(int64_t code, double arg, int32_t v, int32_t mean) {
  switch (code) {
    case kInvert:
      return uint8_t(255 - v);
    case kPosterize:
      return uint8_t(v & (256 - (1 << (8 - whole(arg, 0, 8)))));
    case kSolarize:
      return uint8_t(double(v) < arg ? v : 255 - v);
    case kSolarizeAdd:
      return uint8_t(v < 128 ? clip(v + whole(arg, -255, 255), 255) : v);
    default:  // brightness: a blend with black; contrast: with the mean
      return blend(mean, v, float(arg));
  }
}

void tones(const AugmentArgs& a, int64_t code, double arg, const uint8_t* image, uint8_t* out) {
  const int64_t plane = a.H * a.W;
  const bool counted = code == kAutoContrast || code == kEqualize;
  uint8_t table[256];
  const int32_t mean = code == kContrast ? mean_grey(a, image) : 0;
  for (int32_t v = 0; !counted && v < 256; ++v) table[v] = tone(code, arg, v, mean);
  for (int64_t c = 0; c < a.C; ++c, image += plane, out += plane) {
    if (counted) histogram_table(code, image, plane, table);
    for (int64_t i = 0; i < plane; ++i) out[i] = table[image[i]];
  }
}

void blend_rows(const int32_t* __restrict first, const uint8_t* __restrict second, float factor, int64_t n,
                uint8_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = blend(first[i], second[i], factor);
}

void color(const AugmentArgs& a, float factor, const uint8_t* image, uint8_t* out, char* scratch) {
  const int64_t plane = a.H * a.W;
  int32_t* greys = take<int32_t>(scratch, plane);
  for (int64_t i = 0; i < plane; ++i) greys[i] = grey(a, image, i);
  for (int64_t c = 0; c < a.C; ++c) blend_rows(greys, image + c * plane, factor, plane, out + c * plane);
}

// Pillow's SMOOTH inside a row.
void smooth_row(const uint8_t* up, const uint8_t* own, const uint8_t* down, int64_t W, int32_t* __restrict out) {
  for (int64_t x = 1; x < W - 1; ++x) {
    const int32_t above = up[x - 1] + up[x] + up[x + 1], below = down[x - 1] + down[x] + down[x + 1];
    out[x] = (2 * (above + own[x - 1] + 5 * own[x] + own[x + 1] + below) + 13) / 26;
  }
}

void sharpness(const AugmentArgs& a, float factor, const uint8_t* image, uint8_t* out, char* scratch) {
  int32_t* smooth = take<int32_t>(scratch, a.W);
  std::memcpy(out, image, a.C * a.H * a.W);
  for (int64_t row = 0; row < a.C * a.H; ++row) {
    if (row % a.H == 0 || row % a.H == a.H - 1) continue;
    const uint8_t *own = image + row * a.W, *up = own - a.W, *down = own + a.W;
    smooth_row(up, own, down, a.W, smooth);
    blend_rows(smooth + 1, own + 1, factor, a.W - 2, out + row * a.W + 1);
  }
}

// Four 16-bit numbers of SplitMix64.
CCT_INLINE uint64_t split_mix(uint64_t state) {
  state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9u;
  state = (state ^ (state >> 27)) * 0x94D049BB133111EBu;
  return state ^ (state >> 31);
}

CCT_INLINE float noise(const FinishArgs& a, uint64_t key, int64_t i) {
  const uint64_t four = split_mix(key + uint64_t(i / 4 + 1) * 0x9E3779B97F4A7C15u);
  return a.normals[four >> (16 * (i % 4)) & 0xFFFF];
}

void erase_box(const FinishArgs& a, const int64_t* box, float* out) {
  const int64_t top = clip(box[0], a.H), left = clip(box[1], a.W);
  const int64_t height = clip(box[2], a.H - top), width = clip(box[3], a.W - left);
  for (int64_t c = 0; c < a.C; ++c)
    for (int64_t y = top; y < top + height; ++y)
      for (int64_t x = left; x < left + width; ++x) {
        const int64_t i = (c * a.H + y) * a.W + x;
        out[i] = a.mode == 2 ? 0.f : noise(a, uint64_t(box[4]), a.mode == 0 ? i : c);
      }
}

}  // namespace

void augment_image(const AugmentArgs& a, const int64_t* codes, const double* args, const uint8_t* image, uint8_t* out,
                   char* scratch) {
  const int64_t bytes = a.C * a.H * a.W;
  uint8_t* other = take<uint8_t>(scratch, bytes);
  const uint8_t* now = image;
  for (int64_t s = 0; s < a.steps; ++s) {
    const double* arg = args + s * kArguments;
    uint8_t* target = now == out ? other : out;
    switch (codes[s]) {
      case kIdentity:
        continue;
      case kShift:
        shift(a, arg, now, target);
        break;
      case kResize:
        resize(a, arg, now, target, scratch);
        break;
      case kAffine:
        arg[kFilter] == kNearest ? affine_nearest(a, arg, now, target) : affine(a, arg, now, target);
        break;
      case kColor:
        color(a, float(arg[0]), now, target, scratch);
        break;
      case kSharpness:
        sharpness(a, float(arg[0]), now, target, scratch);
        break;
      default:
        tones(a, codes[s], arg[0], now, target);
    }
    if (codes[s] == kShift || codes[s] == kResize) flip(a, whole(arg[kFlips], 0, 3), target);
    now = target;
  }
  if (now != out) std::memcpy(out, now, bytes);
}

void finish_image(const FinishArgs& a, const uint8_t* image, const uint8_t* partner, float lam, float rest, const int64_t* box,
                  const int64_t* erase, float* out) {
  const int64_t rows = a.C * a.H;
  const bool cut = box && box[1] > box[0];
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t *own = image + row * a.W, *other = partner + row * a.W;
    const float scale = a.scale[row / a.H], shift = a.shift[row / a.H];
    float* target = out + row * a.W;
    if (lam == 1.f || cut)
      for (int64_t x = 0; x < a.W; ++x) target[x] = float(own[x]);
    else
      for (int64_t x = 0; x < a.W; ++x) target[x] = __builtin_rintf(float(own[x]) * lam + float(other[x]) * rest);
    if (cut && row % a.H >= box[0] && row % a.H < box[1])
      for (int64_t x = clip(box[2], a.W); x < clip(box[3], a.W); ++x) target[x] = float(other[x]);
    for (int64_t x = 0; x < a.W; ++x) target[x] = target[x] * scale + shift;
  }
  for (int64_t i = 0; i < a.boxes; ++i) erase_box(a, erase + 5 * i, out);
}

}  // namespace cct::CCT_ISA

#else  // ------------------------------------------------------------------------------- checks, threads, registration
#include "op.h"

namespace cct {
namespace {

constexpr const char *kPixels = "augment_pixels", *kFinish = "augment_finish";

void check_images(const char* op, const at::Tensor& images) {
  TORCH_CHECK_VALUE(images.dim() == 4, op, ": images has ", images.dim(), " dimensions; expected 4");
  check_tensor(op, "images", images, images.sizes(), at::kByte);
}

at::Tensor augment_pixels(const at::Tensor& images_in, const at::Tensor& codes_in, const at::Tensor& args_in,
                          const at::Tensor& fill_in) {
  check_images(kPixels, images_in);
  const at::Tensor images = images_in.contiguous();
  const int64_t B = images.size(0), C = images.size(1), H = images.size(2), W = images.size(3);
  TORCH_CHECK_VALUE(codes_in.dim() == 2, kPixels, ": codes has ", codes_in.dim(), " dimensions; expected 2");
  const int64_t steps = codes_in.size(1);
  check_tensor(kPixels, "codes", codes_in, {B, steps}, at::kLong);
  check_tensor(kPixels, "args", args_in, {B, steps, kArguments}, at::kDouble);
  check_tensor(kPixels, "fill", fill_in, {C}, at::kByte);
  const at::Tensor codes = codes_in.contiguous(), args = args_in.contiguous(), fill = fill_in.contiguous();
  const int64_t* code = codes.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < codes.numel(); ++i) {
    TORCH_CHECK_VALUE(code[i] >= 0 && code[i] < kOperations, kPixels, ": codes holds ", code[i], "; expected 0 to ",
                      kOperations - 1);
    TORCH_CHECK_VALUE(C == 1 || C == 3 || (code[i] != kContrast && code[i] != kColor), kPixels, ": images has ", C,
                      " channels; contrast and color expect 1 or 3");
  }
  at::Tensor out = at::empty_like(images);
  if (out.numel() == 0) return out;
  const AugmentArgs a{C, H, W, steps, fill.const_data_ptr<uint8_t>()};
  for_slices(B, [&](int64_t first, int64_t last, int64_t) {
    char* scratch = thread_scratch(augment_scratch(a));
    for (int64_t b = first; b < last; ++b)
      CCT_CALL(augment_image, a, code + b * steps, args.const_data_ptr<double>() + b * steps * kArguments,
               images.const_data_ptr<uint8_t>() + b * C * H * W, out.data_ptr<uint8_t>() + b * C * H * W, scratch);
  });
  return out;
}

at::Tensor augment_finish(const at::Tensor& images_in, const OptionalTensor& lam_in, const OptionalTensor& box_in,
                          const OptionalTensor& erase_in, const at::Tensor& scale_in, const at::Tensor& shift_in, int64_t mode,
                          const at::Tensor& normals_in) {
  check_images(kFinish, images_in);
  const at::Tensor images = images_in.contiguous();
  const int64_t B = images.size(0), C = images.size(1), H = images.size(2), W = images.size(3);
  TORCH_CHECK_VALUE(lam_in.has_value() == box_in.has_value(), kFinish, ": expected both lam and box, or neither");
  check_tensor(kFinish, "lam", lam_in, {B}, at::kDouble);
  check_tensor(kFinish, "box", box_in, {B, 4}, at::kLong);
  TORCH_CHECK_VALUE(!erase_in || erase_in->dim() == 3, kFinish, ": erase has another shape than (B, boxes, 5)");
  const int64_t boxes = erase_in ? erase_in->size(1) : 0;
  check_tensor(kFinish, "erase", erase_in, {B, boxes, 5}, at::kLong);
  check_tensor(kFinish, "scale", scale_in, {C, 1, 1}, at::kFloat);
  check_tensor(kFinish, "shift", shift_in, {C, 1, 1}, at::kFloat);
  check_tensor(kFinish, "normals", normals_in, {65536}, at::kFloat);
  TORCH_CHECK_VALUE(mode >= 0 && mode <= 2, kFinish, ": mode is ", mode, "; expected 0, 1 or 2");
  const at::Tensor scale = scale_in.contiguous(), shift = shift_in.contiguous(), normals = normals_in.contiguous();
  const at::Tensor lam = lam_in ? lam_in->contiguous() : at::Tensor(), box = box_in ? box_in->contiguous() : at::Tensor();
  const at::Tensor erase = erase_in ? erase_in->contiguous() : at::Tensor();
  at::Tensor out = at::empty({B, C, H, W}, images.options().dtype(at::kFloat));
  if (out.numel() == 0) return out;
  const FinishArgs a{
      C, H, W, boxes, mode, scale.const_data_ptr<float>(), shift.const_data_ptr<float>(), normals.const_data_ptr<float>()};
  const uint8_t* data = images.const_data_ptr<uint8_t>();
  const int64_t size = C * H * W;
  for_slices(B, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t b = first; b < last; ++b) {
      const double share = lam_in ? lam.const_data_ptr<double>()[b] : 1.0;
      CCT_CALL(finish_image, a, data + b * size, data + (B - 1 - b) * size, float(share), float(1 - share),
               box_in ? box.const_data_ptr<int64_t>() + b * 4 : nullptr,
               boxes ? erase.const_data_ptr<int64_t>() + b * boxes * 5 : nullptr, out.data_ptr<float>() + b * size);
    }
  });
  return out;
}

}  // namespace
}  // namespace cct

TORCH_LIBRARY_IMPL(cct_kernels, CPU, m) {
  m.impl("augment_pixels", TORCH_FN(cct::augment_pixels));
  m.impl("augment_finish", TORCH_FN(cct::augment_finish));
}
#endif
