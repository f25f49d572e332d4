// Runs class_gate's and merge_scores' own CUDA source, launches and all, on the host (csrc/emu) against plain loops.
// Exits non-zero on the first difference. Built with -fsanitize=address,undefined, each buffer its own heap block of
// exactly its size. With the argument "contract", hands class_gate a label out of range, which must end it.
#define DDN_EMU
#include "cuda/class_gate.cu"
#include "cuda/merge_scores.cu"

#include <cmath>
#include <string>

using namespace ddn;

namespace {

std::mt19937 rng(11);

int below(int n) {
  return static_cast<int>(rng() % static_cast<unsigned>(n));
}

[[noreturn]] void differs(const char* what, int64_t at, double got, double wanted) {
  std::fprintf(stderr, "%s differs from the plain loop at %lld: %g, not %g\n", what, static_cast<long long>(at), got,
               wanted);
  std::exit(1);
}

// Runs an op with a workspace of exactly what it asks for, full of NaN.
template <class Params>
void run(int (*op)(const Params&, cuda::Stream), int64_t (*bytes_of)(const Params&), Params p) {
  const size_t bytes = static_cast<size_t>(bytes_of(p));
  void* workspace = nullptr;
  if (posix_memalign(&workspace, 256, bytes)) std::exit(1);
  const std::unique_ptr<void, void (*)(void*)> owner(workspace, std::free);
  std::memset(workspace, 0xff, bytes);
  p.workspace = workspace;
  if (op(p, nullptr) != 0) differs("status", 0, 1, 0);
}

// Whole numbers, exact in every type, of which a share is 0.
struct Values {
  std::vector<float> wide;
  std::vector<uint16_t> narrow, half;

  Values(int64_t count, int zeros) {
    wide.reserve(static_cast<size_t>(count));  // and no byte more
    narrow.reserve(wide.capacity()), half.reserve(wide.capacity());
    for (int64_t i = 0; i < count; ++i) {
      wide.push_back(below(100) < zeros ? 0.0f : static_cast<float>(below(5) - 2));
      narrow.push_back(emu::narrowed<BFloat16>(wide.back()));
      half.push_back(emu::narrowed<Float16>(wide.back()));
    }
  }
  const void* of(Dtype dtype) const {
    if (dtype == Dtype::float32) return wide.data();
    return dtype == Dtype::bfloat16 ? narrow.data() : half.data();
  }
};

struct GateShape {
  int64_t images, places, labels, features, inputs, pairs;
};

void test_gate(const GateShape& s, Dtype dtype, Dtype activations, bool bad_label = false) {
  const Values cls(s.labels * s.features, 0), fc7_weight(s.features * s.features, 0),
      fc6_weight(s.features * s.inputs, 0), fc6(s.images * s.places * s.features, 50),
      fc7(s.images * s.places * s.features, 70);
  std::vector<int64_t> position, image, label;
  position.reserve(static_cast<size_t>(s.images * s.labels));
  image.reserve(static_cast<size_t>(s.pairs)), label.reserve(static_cast<size_t>(s.pairs));
  for (int64_t i = 0; i < s.images * s.labels; ++i) position.push_back(below(static_cast<int>(s.places)));
  for (int64_t i = 0; i < s.pairs; ++i) {
    image.push_back(below(static_cast<int>(s.images)));
    label.push_back(bad_label ? s.labels : below(static_cast<int>(s.labels)));
  }
  std::vector<float> y(static_cast<size_t>(s.pairs * s.inputs), NAN);
  ClassGateParams p{};
  p.cls_weight = cls.of(Dtype::float32), p.cls_dtype = Dtype::float32;
  p.fc7_weight = fc7_weight.of(dtype), p.fc6_weight = fc6_weight.of(dtype), p.dtype = dtype;
  p.fc6 = fc6.of(activations), p.fc6_dtype = activations, p.fc7 = fc7.of(activations), p.fc7_dtype = activations;
  p.position = position.data(), p.image = image.data(), p.label = label.data(), p.y = y.data();
  p.labels = s.labels, p.features = s.features, p.places = s.places, p.inputs = s.inputs, p.pairs = s.pairs;
  p.images = s.images;
  run(cuda::class_gate, cuda::class_gate_workspace_bytes, p);

  for (int64_t q = 0; q < s.pairs; ++q) {
    const size_t i = static_cast<size_t>(q);
    const int64_t at =
        (image[i] * s.places + position[static_cast<size_t>(image[i] * s.labels + label[i])]) * s.features;
    std::vector<float> g7(static_cast<size_t>(s.features)), g6(g7.size());
    for (size_t f = 0; f < g7.size(); ++f)
      g7[f] = fc7.wide[static_cast<size_t>(at) + f] > 0 ? cls.wide[static_cast<size_t>(label[i] * s.features) + f] : 0;
    for (size_t f = 0; f < g7.size(); ++f) {
      float sum = 0;
      for (size_t k = 0; k < g7.size(); ++k) sum += g7[k] * fc7_weight.wide[k * g7.size() + f];
      g6[f] = fc6.wide[static_cast<size_t>(at) + f] > 0 ? sum : 0;
    }
    for (int64_t c = 0; c < s.inputs; ++c) {
      float sum = 0;
      for (size_t k = 0; k < g6.size(); ++k)
        sum += g6[k] * fc6_weight.wide[k * static_cast<size_t>(s.inputs) + static_cast<size_t>(c)];
      const float got = y[static_cast<size_t>(q * s.inputs + c)];
      if (got != sum) differs("class_gate", q * s.inputs + c, static_cast<double>(got), static_cast<double>(sum));
    }
  }
}

struct MergeShape {
  int64_t classes, side, square, height, width;
};

// The formula in double; labels may differ where its two best scores are closer than `margin`.
template <class T>
void test_merge(const MergeShape& s, double margin, bool extreme = false) {
  const int64_t passes = s.classes == 1 ? 1 : s.classes + 1, plane = s.side * s.side;
  std::vector<T> difference;
  difference.reserve(static_cast<size_t>(passes * plane));
  for (int64_t i = 0; i < passes * plane; ++i)
    difference.push_back(extreme ? static_cast<T>(i < plane ? 2000 : -2000) : static_cast<T>(below(4001) - 2000) / 400);
  std::vector<uint8_t> y(static_cast<size_t>(s.height * s.width), 0xee);
  MergeScoresParams p{};
  p.difference = difference.data(), p.y = y.data();
  p.dtype = sizeof(T) == 8 ? Dtype::float64 : Dtype::float32;
  p.classes = s.classes, p.side = s.side, p.square = s.square, p.height = s.height, p.width = s.width;
  run(cuda::merge_scores, cuda::merge_scores_workspace_bytes, p);

  std::vector<std::vector<double>> score(static_cast<size_t>(s.classes + 1),
                                         std::vector<double>(static_cast<size_t>(plane)));
  for (int64_t i = 0; i < plane; ++i) {
    double sum = 0;
    for (int64_t k = 0; k <= s.classes; ++k) {
      const int64_t pass = k == 0 ? 0 : k - (s.classes == 1);
      const double d = static_cast<double>(difference[static_cast<size_t>(pass * plane + i)]);
      double& value = score[static_cast<size_t>(k)][static_cast<size_t>(i)];
      value = 1 / (1 + std::exp(k == 0 ? d : -d));
      sum += value;
    }
    for (auto& values : score)
      values[static_cast<size_t>(i)] =
          extreme ? 1.0 / static_cast<double>(s.classes + 1) : values[static_cast<size_t>(i)] / sum;
  }
  const auto cubic_of = [](double x) {
    x = std::abs(x);
    return x <= 1 ? 1.5 * x * x * x - 2.5 * x * x + 1 : x <= 2 ? -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2 : 0.0;
  };
  const auto weights = [&](int64_t i) {  // of every source pixel, mirrored ones added
    const double scale = static_cast<double>(s.square) / static_cast<double>(s.side), shrink = std::min(scale, 1.0);
    const double centre = (static_cast<double>(i) + 0.5) / scale - 0.5;
    std::vector<double> weight(static_cast<size_t>(s.side));
    double sum = 0;
    for (int64_t at = -4 * s.side; at < 5 * s.side; ++at) {
      const double w = cubic_of(shrink * (centre - static_cast<double>(at)));
      const int64_t period = 2 * s.side, folded = ((at % period) + period) % period;
      weight[static_cast<size_t>(folded < s.side ? folded : period - 1 - folded)] += w;
      sum += w;
    }
    for (double& w : weight) w /= sum;
    return weight;
  };
  for (int64_t i = 0; i < s.height; ++i)
    for (int64_t j = 0; j < s.width; ++j) {
      const std::vector<double> down = weights(i), across = weights(j);
      double best = 0, second = 0;
      int64_t label = 0;
      for (int64_t k = 0; k <= s.classes; ++k) {
        double value = 0;
        for (size_t a = 0; a < down.size(); ++a)
          for (size_t b = 0; b < across.size(); ++b)
            value += down[a] * across[b] * score[static_cast<size_t>(k)][a * down.size() + b];
        if (k == 0 || value > best)
          second = k == 0 ? -1 : best, best = value, label = k;
        else
          second = std::max(second, value);
      }
      const int64_t at = i * s.width + j, got = y[static_cast<size_t>(at)];
      if (got != label && (best - second > margin || got > s.classes))
        differs("merge_scores", at, static_cast<double>(got), static_cast<double>(label));
    }
}

// NaN of any pass is in all scores of its pixel, as in their sum: background.
void test_merge_of_nan() {
  std::vector<float> difference = {9, 9, 9, 9, 1, 1, NAN, 1, 2, 2, 2, 2};  // [3,2,2]
  const std::vector<uint8_t> wanted = {2, 2, 0, 2};
  std::vector<uint8_t> y(4, 0xee);
  MergeScoresParams p{};
  p.difference = difference.data(), p.y = y.data(), p.dtype = Dtype::float32;
  p.classes = 2, p.side = p.square = p.height = p.width = 2;
  run(cuda::merge_scores, cuda::merge_scores_workspace_bytes, p);
  for (size_t i = 0; i < y.size(); ++i)
    if (y[i] != wanted[i]) differs("merge_scores of NaN", static_cast<int64_t>(i), y[i], wanted[i]);
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "contract") {
    test_gate({1, 1, 2, 8, 8, 1}, Dtype::float32, Dtype::float32, true);
    return 0;
  }
  const GateShape gates[] = {
      {2, 4, 3, 40, 24, 5}, {1, 1, 1, 7, 5, 1}, {3, 4, 5, 264, 1032, 11}, {2, 4, 3, 16, 13, 0}, {2, 4, 3, 24, 13, 17}};
  for (const GateShape& s : gates) {
    emu::options.seed = static_cast<unsigned>(rng() % 100);
    test_gate(s, Dtype::bfloat16, Dtype::float32);
    test_gate(s, Dtype::float16, Dtype::float32);
    test_gate(s, Dtype::float32, Dtype::bfloat16);
  }
  const MergeShape merges[] = {
      {3, 8, 20, 20, 13}, {1, 8, 8, 8, 5}, {2, 12, 5, 4, 5}, {4, 10, 1, 1, 1}, {2, 9, 31, 7, 31}};
  for (const MergeShape& s : merges) {
    test_merge<float>(s, 1e-5);
    test_merge<double>(s, 1e-12);
  }
  test_merge<float>({3, 6, 6, 6, 6}, -1, true);  // all scores exactly 0: equal shares, and the first wins
  test_merge_of_nan();
  std::puts("ok");
}
