#include "../cpu/augment.cpp"

#include "driver.h"

namespace cct {
namespace {

struct Shape {
  int64_t C, H, W;
};

// Bytes, float64 numbers or integers in guarded memory.
template <typename T>
struct Elements {
  explicit Elements(int64_t n) : n(n), memory(n * int64_t(sizeof(T))) {}
  explicit Elements(const std::vector<T>& values) : Elements(int64_t(values.size())) {
    std::memcpy(memory.data(), values.data(), memory.bytes());
  }
  T* data() const { return reinterpret_cast<T*>(memory.data()); }
  Values values() const {
    std::vector<T> out(n);
    std::memcpy(out.data(), memory.data(), memory.bytes());
    return Values(out.begin(), out.end());
  }
  int64_t n;
  Guarded memory;
};

std::vector<uint8_t> noise(int64_t n) {
  std::mt19937 engine(5);
  std::vector<uint8_t> out(n);
  for (uint8_t& v : out) v = uint8_t(engine());
  return out;
}

Elements<uint8_t> run(const AugmentArgs& a, const Elements<uint8_t>& image, const std::vector<int64_t>& codes,
                      const std::vector<double>& args) {
  const Elements<int64_t> code(codes);
  const Elements<double> arg(args);
  const Guarded scratch(augment_scratch(a));
  Elements<uint8_t> out(a.C * a.H * a.W);
  AugmentArgs with = a;
  with.steps = int64_t(codes.size());
  augment_image(with, code.data(), arg.data(), image.data(), out.data(), scratch.data());
  return out;
}

// Operations that leave an image as it is, one that does not, and arguments far outside of what is drawn.
void test_steps(const std::string& where, const Shape& s) {
  const int64_t n = s.C * s.H * s.W;
  const Elements<uint8_t> image(noise(n)), fill(std::vector<uint8_t>(s.C, 9));
  const AugmentArgs a{s.C, s.H, s.W, 0, fill.data()};
  const double H = double(s.H), W = double(s.W), far = 1e300, none = __builtin_nan("");
  const std::vector<std::pair<int64_t, std::vector<double>>> still = {
      {kIdentity, {}},
      {kShift, {}},
      {kResize, {0, 0, H, W, 0, 0, 1}},
      {kResize, {0, 0, H, W, 0, 0, 2}},
      {kAffine, {1, 0, 0, 0, 1}},
      {kAffine, {1, 0, 0, 0, 1, 0, 2}},
      {kPosterize, {8}},
      {kSolarize, {256}},
      {kSolarizeAdd, {0}},
      {kBrightness, {1}},
      {kContrast, {1}},
      {kColor, {1}},
      {kSharpness, {1}},
  };
  for (auto [code, args] : still) {
    args.resize(kArguments);
    expect_near(where + "operation " + std::to_string(code), run(a, image, {code}, args).values(), image.values(), 0);
  }
  Values inverted = image.values();
  for (double& v : inverted) v = 255 - v;
  const std::vector<double> three(3 * kArguments);
  expect_near(where + "three steps", run(a, image, {kInvert, kInvert, kInvert}, three).values(), inverted, 0);
  for (int64_t code = 0; code < kOperations; ++code)
    for (double wild : {far, -far, none, 2.5, -1.0, 1e6})
      for (double filter : {0.0, 1.0, 2.0}) {
        std::vector<double> args(kArguments, wild);
        args[kFilter] = filter;
        run(a, image, {code}, args);
      }
}

void test_finish(const std::string& where, const Shape& s) {
  const int64_t n = s.C * s.H * s.W;
  const Elements<uint8_t> image(noise(n)), partner(std::vector<uint8_t>(n, 100));
  const Elements<float> normals(std::vector<float>(65536, 7.f)), scale(std::vector<float>(s.C, 2.f));
  const Elements<float> shift(std::vector<float>(s.C, -1.f));
  const int64_t most = int64_t(1) << 62;
  const Elements<int64_t> box(std::vector<int64_t>{0, 1, 0, 1}), nothing(std::vector<int64_t>{0, 0, 0, 0});
  const Elements<int64_t> erase(std::vector<int64_t>{0, 0, 0, 0, 0, -5, most, most, -most, 3, s.H - 1, 0, most, 1, -3});
  for (int64_t mode = 0; mode < 3; ++mode) {
    const FinishArgs a{s.C, s.H, s.W, 3, mode, scale.data(), shift.data(), normals.data()};
    Elements<float> out(n);
    for (bool cut : {false, true}) {
      finish_image(a, image.data(), partner.data(), 0.5f, 0.5f, cut ? box.data() : nothing.data(), erase.data(), out.data());
      Values expected = image.values();
      for (int64_t i = 0; i < n; ++i) {
        const bool corner = i % (s.H * s.W) == 0, erased = i / s.W % s.H == s.H - 1 && i % s.W == 0;
        expected[i] = cut ? (corner ? 100 : expected[i]) : std::nearbyint(expected[i] / 2 + 50);
        expected[i] = erased ? (mode == 2 ? 0 : 7) : 2 * expected[i] - 1;
      }
      expect_near(where + (cut ? "cut, " : "mixed, ") + std::to_string(mode), out.values(), expected, 0);
    }
  }
}

}  // namespace

void test(const std::string& where, const Setting& set) {
  if (set.bf16 || set.x_bf16 || set.threads > 1) return;  // bytes only; each image is one thread's
  for (const Shape& s : {Shape{1, 1, 1}, {3, 1, 5}, {3, 7, 2}, {1, 33, 31}, {3, 16, 40}}) {
    test_steps(where, s);
    test_finish(where, s);
  }
}

}  // namespace cct
