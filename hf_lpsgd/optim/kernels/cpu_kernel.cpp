// The LPSGD and LPSGDM step on the CPU: one pass over memory for all tensors of a call, on several threads.
//
// It needs no headers of torch or Python, so one build works with every version of both. Its threads are those of torch:
// the caller gives the functions of the OpenMP library that torch has loaded.
//
// Each element goes through the same operations in the same order, whatever its place and the number of threads: the
// vector loop always runs on whole multiples of kLanes. So a sharded step gives bit for bit what an unsharded one gives.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

namespace {

enum Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// How the running mean is formed. Of the two ways to interpolate, the one with the smaller error, as torch.lerp does.
enum Mean { kNoMomentum, kHeavyMomentum, kLightMomentum };

constexpr int64_t kLanes = 16;         // floats in the widest vector there is
constexpr int64_t kTile = 512;         // elements converted at a time: four tiles stay in the first-level cache
constexpr int64_t kApart = 256;        // floats between tiles, so that a load does not seem to need a store to another
constexpr int64_t kAlign = 64;         // threads meet at multiples of this, so that they share no cache line
constexpr int64_t kPerThread = 32768;  // elements below which another thread costs more than it brings, as in ATen

// As cpu.py gives them.
struct Options {
  float lr, decay;                                                  // of the update; of the parameter
  float weight, rho, eps, weight_decay, sign, lr_scale, bound;  // NUMBERS in hyperparameters.py
};

struct Tensors {
  void* param;
  const void* grad;
  void* buffer;
  const uint32_t* key;  // two words for stochastic rounding, or null to round to nearest
};

#define INLINE inline __attribute__((always_inline))

INLINE float as_float(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

INLINE int32_t as_bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// x^-rho for x >= 0 as exp2(-rho * log2(x)), in float32. The relative error is below 2e-6 for x of 1e-8 and more, and
// below 7e-6 for x up to 1e37.
// Any change of it, even of how its clamps are written, changes which operations the compiler fuses, and with them the
// last bits: runs of 0.1.0 would no longer resume exactly.
INLINE float power_of(float x, float rho) {
  constexpr float smallest_normal = 1.17549435e-38f;
  x = x < smallest_normal ? smallest_normal : x;
  // x = 2^exponent * (1 + z) with 1 + z in [sqrt(1/2), sqrt(2)).
  const int32_t bits = as_bits(x);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  const float z = as_float(bits - exponent * (1 << 23)) - 1.0f;
  // Minimax approximation of log2(1 + z), with an absolute error of 3e-7.
  float log2 = 0.170634463429451f;
  log2 = log2 * z - 0.27269792556762695f;
  log2 = log2 * z + 0.297262579202652f;
  log2 = log2 * z - 0.3589618504047394f;
  log2 = log2 * z + 0.48046502470970154f;
  log2 = log2 * z - 0.7213758826255798f;
  log2 = log2 * z + 1.442699670791626f;
  float y = -rho * static_cast<float>(exponent) - rho * (log2 * z);
  y = y < -125.0f ? -125.0f : y;
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
  constexpr float shift = 12582912.0f;
  const float shifted = y + shift;
  const float fraction = y - (shifted - shift);
  // Minimax approximation of exp2(fraction) on [-1/2, 1/2], with a relative error of 1e-7, and exactly 1 at 0.
  float exp2 = 0.0013407259248197079f;
  exp2 = exp2 * fraction + 0.009671875275671482f;
  exp2 = exp2 * fraction + 0.055503085255622864f;
  exp2 = exp2 * fraction + 0.24022234976291656f;
  exp2 = exp2 * fraction + 0.6931472420692444f;
  exp2 = exp2 * fraction + 1.0f;
  const float scale = as_float(as_bits(exp2) + static_cast<int32_t>(static_cast<uint32_t>(as_bits(shifted)) << 23));
  return x > 3.402823466e+38f ? 0.0f : scale;
}

// `size` is a multiple of kLanes.
template <Mean mean_kind, bool rescale>
INLINE void update(float* __restrict param, const float* __restrict grad, float* __restrict buffer, int64_t size,
                   const Options& options) {
  const Options o = options;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    float mean = o.sign * grad[i];
    if (mean_kind == kHeavyMomentum) mean = buffer[i] + o.weight * (mean - buffer[i]);
    if (mean_kind == kLightMomentum) mean = mean - (1.0f - o.weight) * (mean - buffer[i]);
    if (mean_kind != kNoMomentum) buffer[i] = mean;
    // Written so that NaN stays NaN.
    mean = mean > o.bound ? o.bound : mean;
    mean = mean < -o.bound ? -o.bound : mean;
    if (rescale) {
      param[i] = o.decay * param[i] - (o.lr * mean) * power_of(std::fabs(mean) + o.eps, o.rho);
    } else {
      param[i] = o.decay * param[i] - o.lr * mean;
    }
  }
}

INLINE float from_float16(uint16_t half) {
  const int32_t magnitude = half & 0x7fff;
  const int32_t normal = (magnitude << 13) + (112 << 23);
  // Computed without subnormal floats, which a thread may be set to treat as zero.
  const int32_t subnormal = as_bits(static_cast<float>(magnitude) * 0x1p-24f);
  const int32_t finite = magnitude < 0x0400 ? subnormal : normal;
  const int32_t special = magnitude >= 0x7c00 ? 0x7f800000 : 0;  // infinities and NaN
  return as_float(finite | special | ((half & 0x8000) << 16));
}

INLINE uint16_t to_float16(float value) {
  const int32_t bits = as_bits(value);
  const int32_t magnitude = bits & 0x7fffffff;
  const int32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const int32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000;
  const int32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  const int32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  const int32_t half = magnitude >= 0x47800000 ? special : finite;
  return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000));
}

INLINE float from_bfloat16(uint16_t value) { return as_float(static_cast<int32_t>(static_cast<uint32_t>(value) << 16)); }

// Rounded by a random number of 16 bits.
INLINE uint16_t to_bfloat16(float value, uint32_t random) {
  const uint32_t rounded = static_cast<uint32_t>(as_bits(value)) + random;
  return static_cast<uint16_t>((value != value ? 0x7fc00000u : rounded) >> 16);
}

INLINE uint16_t to_bfloat16(float value) {
  return to_bfloat16(value, 0x7fffu + ((static_cast<uint32_t>(as_bits(value)) >> 16) & 1u));
}

// Random numbers of 16 bits for `size` elements from the place `start` on, which is even; as in rounding.py.
INLINE void draw(const uint32_t* key, int64_t start, int64_t size, uint16_t* numbers) {
  const uint32_t first = static_cast<uint32_t>(start) / 2, key0 = key[0], key1 = key[1];
#pragma omp simd
  for (int64_t i = 0; i < (size + 1) / 2; ++i) {
    uint32_t word = (first + static_cast<uint32_t>(i)) ^ key0;
    word ^= word >> 16;
    word *= 0x21f0aaadu;
    word ^= word >> 15;
    word += key1;
    word *= 0xd35a2d97u;
    word ^= word >> 15;
    numbers[2 * i] = static_cast<uint16_t>(word);
    numbers[2 * i + 1] = static_cast<uint16_t>(word >> 16);
  }
}

INLINE uint16_t to_float16(float value, uint32_t random) {
  const uint32_t bits = static_cast<uint32_t>(as_bits(value)), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + (random >> 3)) >> 13;
  // Of a subnormal number, 2^16 times its distance from zero in units of the last place.
  const float distance = std::fabs(value) < 0x1p-14f ? std::fabs(value) : 0.0f;
  const uint32_t units = static_cast<uint32_t>(static_cast<int32_t>(distance * 0x1p40f));
  const uint32_t finite = magnitude < 0x38800000u ? (units + random) >> 16 : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t half = magnitude >= 0x47800000u ? special : finite;
  return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

// Elements as float32: in place where that is possible, else converted into `scratch`.
INLINE float* open(void* data, int32_t dtype, int64_t start, int64_t size, float* scratch) {
  float* floats = static_cast<float*>(data) + start;
  const uint16_t* halves = static_cast<const uint16_t*>(data) + start;
  if (dtype == kFloat32 && size % kLanes == 0) return floats;
  if (dtype == kFloat32) {
    for (int64_t i = 0; i < size; ++i) scratch[i] = floats[i];
  } else if (dtype == kBFloat16) {
    for (int64_t i = 0; i < size; ++i) scratch[i] = from_bfloat16(halves[i]);
  } else {
    for (int64_t i = 0; i < size; ++i) scratch[i] = from_float16(halves[i]);
  }
  for (int64_t i = size; i % kLanes != 0; ++i) scratch[i] = 0.0f;
  return scratch;
}

// Where there are random `numbers`, they round the values.
INLINE void close(void* data, int32_t dtype, int64_t start, int64_t size, const float* opened,
                  const uint16_t* numbers) {
  float* floats = static_cast<float*>(data) + start;
  uint16_t* halves = static_cast<uint16_t*>(data) + start;
  if (dtype == kFloat32) {
    if (opened != floats) std::memcpy(floats, opened, size * sizeof(float));
  } else if (dtype == kBFloat16 && numbers == nullptr) {
    for (int64_t i = 0; i < size; ++i) halves[i] = to_bfloat16(opened[i]);
  } else if (dtype == kBFloat16) {
    for (int64_t i = 0; i < size; ++i) halves[i] = to_bfloat16(opened[i], numbers[i]);
  } else if (numbers == nullptr) {
    for (int64_t i = 0; i < size; ++i) halves[i] = to_float16(opened[i]);
  } else {
    for (int64_t i = 0; i < size; ++i) halves[i] = to_float16(opened[i], numbers[i]);
  }
}

INLINE double sum_of_squares(const float* values, int64_t size) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return sum;
}

// Adds the squares of the mean, or without momentum of the gradient, to `*squares` unless that is null.
template <Mean mean_kind, bool rescale>
INLINE void update_range(const Tensors& tensors, const int32_t* dtypes, int64_t start, int64_t end,
                         const Options& options, double* squares) {
  alignas(64) float params[kTile + kApart], grads[kTile + kApart], buffers[kTile + kApart];
  alignas(64) uint16_t drawn[kTile + kLanes];
  const uint16_t* numbers = tensors.key == nullptr ? nullptr : drawn;
  while (start < end) {
    int64_t size = std::min(end - start, kTile);
    if (size > kLanes) size -= size % kLanes;
    float* param = open(tensors.param, dtypes[0], start, size, params);
    const float* grad = open(const_cast<void*>(tensors.grad), dtypes[1], start, size, grads);
    float* buffer = mean_kind == kNoMomentum ? nullptr : open(tensors.buffer, dtypes[2], start, size, buffers);
    update<mean_kind, rescale>(param, grad, buffer, (size + kLanes - 1) / kLanes * kLanes, options);
    if (squares != nullptr) *squares += sum_of_squares(mean_kind == kNoMomentum ? grad : buffer, size);
    if (numbers != nullptr) draw(tensors.key, start, size, drawn);
    close(tensors.param, dtypes[0], start, size, param, numbers);
    if (mean_kind != kNoMomentum) close(tensors.buffer, dtypes[2], start, size, buffer, numbers);
    start += size;
  }
}

using RangeUpdate = void (*)(const Tensors&, const int32_t*, int64_t, int64_t, const Options&, double*);

// The loops compiled for one instruction set, by the way to form the mean and by whether there is a power.
#define DEFINE_UPDATES(name, target)                                                                          \
  template <Mean mean, bool rescale>                                                                          \
  target void name(const Tensors& tensors, const int32_t* dtypes, int64_t start, int64_t end,                 \
                   const Options& options, double* squares) {                                                 \
    update_range<mean, rescale>(tensors, dtypes, start, end, options, squares);                               \
  }                                                                                                           \
  constexpr RangeUpdate name##_updates[3][2] = {{name<kNoMomentum, false>, name<kNoMomentum, true>},          \
                                                {name<kHeavyMomentum, false>, name<kHeavyMomentum, true>},    \
                                                {name<kLightMomentum, false>, name<kLightMomentum, true>}};

struct Implementation {
  const RangeUpdate (*updates)[2];
  const char* instructions;
};

DEFINE_UPDATES(baseline, )
#if defined(__x86_64__)
#if defined(__clang__)
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#else
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512"
#endif
DEFINE_UPDATES(avx2, __attribute__((target("avx2,fma"))))
DEFINE_UPDATES(avx512, __attribute__((target(AVX512))))
#endif

// ATEN_CPU_CAPABILITY limits the choice to "avx2" or "default", as it does that of torch's own kernels.
Implementation best_implementation() {
#if defined(__x86_64__)
  const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
  const bool only_default = limit != nullptr && std::strcmp(limit, "default") == 0;
  const bool only_avx2 = limit != nullptr && std::strcmp(limit, "avx2") == 0;
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && !only_avx2 && !only_default) return {avx512_updates, "AVX512"};
  if (has_avx2 && !only_default) return {avx2_updates, "AVX2"};
#endif
  return {baseline_updates, "DEFAULT"};
}

const Implementation implementation = best_implementation();

// GOMP_parallel, omp_get_num_threads and omp_get_thread_num of one OpenMP library. GCC's has these names and signatures,
// and so have those of LLVM and Intel. Without them a step uses one thread.
struct {
  void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
  int (*team)();
  int (*thread)();
} openmp{};

// Calls function(thread, team) on each thread of a team of at most `threads`.
template <typename Function>
void on_threads(int threads, const Function& function) {
  if (threads == 1 || openmp.parallel == nullptr) return function(0, 1);
  openmp.parallel([](void* data) { (*static_cast<const Function*>(data))(openmp.thread(), openmp.team()); },
                  const_cast<Function*>(&function), threads, 0);
}

// The elements of all tensors are numbered one after another, and a thread's share begins or ends at number `bound`.
// Returns where that is within the tensor of `size` elements whose first element has the number `first`.
int64_t cut(int64_t bound, int64_t first, int64_t size) {
  const int64_t place = std::clamp<int64_t>(bound - first, 0, size);
  return place == size ? size : place - place % kAlign;
}

}  // namespace

extern "C" {

// Changes whenever a signature below does, so that a library built from other sources is not called.
int32_t hf_lpsgd_interface() { return 800 + (sizeof(Options) / sizeof(float)) - 2; }

// Takes the functions to make threads with.
void hf_lpsgd_use_openmp(void (*parallel)(void (*)(void*), void*, unsigned, unsigned), int (*team)(), int (*thread)()) {
  openmp = {parallel, team, thread};
}

// How many threads a step uses where it may use `most`.
int32_t hf_lpsgd_threads(int32_t most) {
  int32_t threads = 0;
  on_threads(most, [&](int64_t thread, int64_t team) {
    if (thread == 0) threads = static_cast<int32_t>(team);
  });
  return threads;
}

// The instruction set in use: AVX512, AVX2 or DEFAULT.
const char* hf_lpsgd_instructions() { return implementation.instructions; }

// Updates `count` dense tensors in place. `buffers` is null for LPSGD. `dtypes` are those of the parameters, the
// gradients and the buffers; all tensors share them. `most_threads` is the largest number of threads to use. Where
// `squares` is not null, it gets the sum of the squares of the means, before they are cut off. Where `keys` is not null,
// it has two words per tensor, and 16-bit parameters and buffers are rounded stochastically.
void hf_lpsgd_step(int64_t count, void* const* params, const void* const* grads, void* const* buffers,
                   const int64_t* sizes, const int32_t* dtypes, const uint32_t* keys, const Options* given,
                   int32_t most_threads, double* squares) {
  const Options options = *given;
  const Mean mean = buffers == nullptr ? kNoMomentum : options.weight < 0.5f ? kHeavyMomentum : kLightMomentum;
  const RangeUpdate update = implementation.updates[mean][options.rho != 0.0f];
  const int64_t total = std::accumulate(sizes, sizes + count, int64_t{0});
  const int64_t useful = (total + kPerThread - 1) / kPerThread;
  const int threads = static_cast<int>(std::clamp<int64_t>(useful, 1, std::max(most_threads, 1)));
  std::vector<double> measured(threads, 0.0);  // summed in one order, whichever thread is the first to be done
  on_threads(threads, [&](int64_t thread, int64_t team) {
    const int64_t begin = total / team * thread + std::min(thread, total % team);
    const int64_t end = total / team * (thread + 1) + std::min(thread + 1, total % team);
    int64_t first = 0;
    double sum = 0.0;
    for (int64_t index = 0; index < count && first < end; first += sizes[index++]) {
      const Tensors tensors{params[index], grads[index], buffers == nullptr ? nullptr : buffers[index],
                            keys == nullptr ? nullptr : keys + 2 * index};
      const int64_t from = cut(begin, first, sizes[index]), to = cut(end, first, sizes[index]);
      if (from < to) update(tensors, dtypes, from, to, options, squares == nullptr ? nullptr : &sum);
    }
    measured[thread] = sum;
  });
  if (squares != nullptr) *squares = std::accumulate(measured.begin(), measured.end(), 0.0);
}
}
