// The LPSGD and LPSGDM step on the CPU: one pass over memory for all tensors of a call, on several threads.
//
// It needs no headers of torch or Python, so one build works with every version of both. Its threads are those of the
// OpenMP library that torch has loaded. Each element goes through the same operations in the same order, whatever its
// place and the number of threads: the vector loop always runs on whole multiples of kLanes. So a sharded step gives
// bit for bit what an unsharded one gives.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string_view>
#include <vector>

namespace {

enum Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat8 = 2 };
// How the running mean is formed. Of the two ways to interpolate, the one with the smaller error, as torch.lerp does.
enum Mean { kNoMomentum, kHeavyMomentum, kLightMomentum };

constexpr int64_t kLanes = 16;         // floats in the widest vector there is
constexpr int64_t kTile = 512;         // elements converted at a time: four tiles stay in the first-level cache
constexpr int64_t kApart = 256;        // floats between tiles, so that a load does not seem to need a store to another
constexpr int64_t kAlign = 64;         // threads meet at multiples of this, so that they share no cache line
constexpr int64_t kPerThread = 32768;  // elements below which another thread costs more than it brings, as in ATen

// As cpu.py gives them.
struct Options {
  float lr, decay;                                                             // of the update; of the parameter
  float weight, rho, eps, weight_decay, sign, lr_scale, bound, momentum_unit;  // NUMBERS in hyperparameters.py
};

// Elements of a parameter, its gradient and, if there is one, its buffer.
struct Piece {
  void *param, *grad, *buffer;
  const uint32_t* key;  // two words for stochastic rounding, or null to round to nearest
  int64_t start, end;
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

// x^-rho for x >= 0 as exp2(-rho * log2(x)), with a relative error below 2e-6 for x of 1e-8 and more, and below 7e-6
// for x up to 1e37. Any change, even of how its clamps are written, changes which operations the compiler fuses, and
// with them the last bits: runs of 0.1.0 would no longer resume exactly.
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

// Updates `size` elements, a multiple of kLanes.
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

template <Mean mean_kind>
INLINE void update(float* param, const float* grad, float* buffer, int64_t size, const Options& options) {
  if (options.rho == 0.0f) return update<mean_kind, false>(param, grad, buffer, size, options);
  update<mean_kind, true>(param, grad, buffer, size, options);
}

template <bool stochastic>
INLINE uint16_t to_bfloat16(float value, uint32_t random = 0) {
  const uint32_t bits = static_cast<uint32_t>(as_bits(value));
  const uint32_t rounded = bits + (stochastic ? random : 0x7fffu + ((bits >> 16) & 1u));
  return static_cast<uint16_t>((value != value ? 0x7fc00000u : rounded) >> 16);
}

// float8 of the format e5m2, whose smallest normal number stands for `least`, a power of two; as in rounding.py. Of the
// two ways to read or to round, that of subnormal numbers and that of others, the right one gives the least, or the most.
INLINE float from_float8(int8_t byte, float least) {
  const int32_t magnitude = (byte & 0x7f) << 21, above = magnitude + as_bits(least);
  const int32_t finite = std::min(as_bits(as_float(above) - least), above - (1 << 23));
  return as_float((magnitude >= 0x7c << 21 ? magnitude | 0x7f800000 : finite) | (byte & INT32_MIN));
}

INLINE uint8_t to_float8(float value, float least, int32_t random) {
  const int32_t bits = as_bits(value), magnitude = bits & 0x7fffffff;
  const int32_t twice = static_cast<int32_t>(static_cast<uint32_t>(magnitude) + (1u << 23));
  const int32_t above = std::max(as_bits(std::fabs(value) + least), twice) - as_bits(least);
  const int32_t most = magnitude < 0x7f800000 ? 0x7b : magnitude > 0x7f800000 ? 0x7e : 0x7c;
  return static_cast<uint8_t>(std::min((above + (random << 5)) >> 21, most) | ((bits >> 24) & 0x80));
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
    std::memcpy(numbers + 2 * i, &word, sizeof word);  // the lower half first, as processors have it
  }
}

// Elements as float32: in place where that is possible, else converted into `scratch`.
INLINE float* open(void* data, int32_t dtype, int64_t start, int64_t size, float* scratch, float least = 0.0f) {
  float* floats = static_cast<float*>(data) + start;
  const uint16_t* halves = static_cast<const uint16_t*>(data) + start;
  if (dtype == kFloat32 && size % kLanes == 0) return floats;
  if (dtype == kFloat32) {
    for (int64_t i = 0; i < size; ++i) scratch[i] = floats[i];
  } else if (dtype == kBFloat16) {
    for (int64_t i = 0; i < size; ++i) scratch[i] = as_float(halves[i] << 16);
  } else {
    const int8_t* bytes = static_cast<const int8_t*>(data) + start;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) scratch[i] = from_float8(bytes[i], least);
  }
  for (int64_t i = size; i % kLanes != 0; ++i) scratch[i] = 0.0f;
  return scratch;
}

// Where random numbers were `drawn`, they round the values.
INLINE void close(void* data, int32_t dtype, int64_t start, int64_t size, const float* opened, const uint16_t* drawn,
                  float least = 0.0f) {
  float* floats = static_cast<float*>(data) + start;
  uint16_t* halves = static_cast<uint16_t*>(data) + start;
  if (dtype == kFloat32) {
    if (opened != floats) std::memcpy(floats, opened, size * sizeof(float));
  } else if (dtype == kBFloat16 && drawn == nullptr) {
    for (int64_t i = 0; i < size; ++i) halves[i] = to_bfloat16<false>(opened[i]);
  } else if (dtype == kBFloat16) {
    for (int64_t i = 0; i < size; ++i) halves[i] = to_bfloat16<true>(opened[i], drawn[i]);
  } else {
    uint8_t* bytes = static_cast<uint8_t*>(data) + start;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) bytes[i] = to_float8(opened[i], least, drawn[i]);
  }
}

INLINE double sum_of_squares(const float* values, int64_t size) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return sum;
}

// Adds the squares of the mean, or without momentum of the gradient, to `*squares` unless that is null.
INLINE void update_piece(const Piece& piece, const int32_t* dtypes, const Options& options, double* squares) {
  alignas(64) float params[kTile + kApart], grads[kTile + kApart], buffers[kTile + kApart];
  alignas(64) uint16_t drawn[kTile + kLanes];
  const uint16_t* random = piece.key == nullptr ? nullptr : drawn;
  const float least = options.momentum_unit * 0x1p-14f;
  for (int64_t start = piece.start, size; start < piece.end; start += size) {
    size = std::min(piece.end - start, kTile);
    if (size > kLanes) size -= size % kLanes;
    const int64_t padded = (size + kLanes - 1) / kLanes * kLanes;
    float* param = open(piece.param, dtypes[0], start, size, params);
    const float* grad = open(piece.grad, dtypes[1], start, size, grads);
    float* buffer = piece.buffer == nullptr ? nullptr : open(piece.buffer, dtypes[2], start, size, buffers, least);
    if (buffer == nullptr) update<kNoMomentum>(param, grad, buffer, padded, options);
    else if (options.weight < 0.5f) update<kHeavyMomentum>(param, grad, buffer, padded, options);
    else update<kLightMomentum>(param, grad, buffer, padded, options);
    if (squares != nullptr) *squares += sum_of_squares(buffer == nullptr ? grad : buffer, size);
    if (random != nullptr) draw(piece.key, start, size, drawn);
    close(piece.param, dtypes[0], start, size, param, random);
    if (buffer != nullptr) close(piece.buffer, dtypes[2], start, size, buffer, random, least);
  }
}

// Compiles update_piece for one instruction set.
#define DEFINE_UPDATE(name, target)                                                                        \
  target void name(const Piece& piece, const int32_t* dtypes, const Options& options, double* squares) {   \
    update_piece(piece, dtypes, options, squares);                                                         \
  }

DEFINE_UPDATE(update_baseline, )
#if defined(__x86_64__)
#if defined(__clang__)
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#else
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512"
#endif
DEFINE_UPDATE(update_avx2, __attribute__((target("avx2,fma"))))
DEFINE_UPDATE(update_avx512, __attribute__((target(AVX512))))
#endif

struct Implementation {
  decltype(&update_baseline) update;
  const char* instructions;
};

// ATEN_CPU_CAPABILITY limits the choice to "avx2" or "default", as it does that of torch's own kernels.
Implementation best_implementation() {
#if defined(__x86_64__)
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view limit = variable == nullptr ? "" : variable;
  __builtin_cpu_init();
  const bool has_avx2 = limit != "default" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = limit != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2 && has_avx512) return {update_avx512, "AVX512"};
  if (has_avx2) return {update_avx2, "AVX2"};
#endif
  return {update_baseline, "DEFAULT"};
}

const Implementation implementation = best_implementation();

// GOMP_parallel, omp_get_num_threads and omp_get_thread_num of GCC's OpenMP library, or of LLVM's or Intel's, which
// have the same. Without them a step uses one thread.
struct OpenMP {
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
int32_t hf_lpsgd_interface() { return 900 + (sizeof(Options) / sizeof(float)) - 2; }

void hf_lpsgd_use_openmp(decltype(OpenMP::parallel) parallel, int (*team)(), int (*thread)()) {
  openmp = {parallel, team, thread};
}

// How many threads a step uses where it may use `most`.
int32_t hf_lpsgd_threads(int32_t most) {
  int threads = 0;
  on_threads(most, [&](int thread, int team) { if (thread == 0) threads = team; });
  return threads;
}

const char* hf_lpsgd_instructions() { return implementation.instructions; }

// Updates `count` dense tensors in place. `buffers` is null for LPSGD. `dtypes` are those of all parameters, gradients
// and buffers. Unless `squares` is null, it gets the sum of the squares of the means, before they are cut off. Unless
// `keys` is null, it has two words per tensor, and 16-bit parameters and buffers are rounded stochastically.
void hf_lpsgd_step(int64_t count, void* const* params, void* const* grads, void* const* buffers, const int64_t* sizes,
                   const int32_t* dtypes, const uint32_t* keys, const Options* options, int32_t most_threads,
                   double* squares) {
  const int64_t total = std::accumulate(sizes, sizes + count, int64_t{0});
  const int64_t useful = (total + kPerThread - 1) / kPerThread;
  const int threads = static_cast<int>(std::clamp<int64_t>(useful, 1, most_threads));
  std::vector<double> measured(threads, 0.0);  // summed in one order, whichever thread is the first to be done
  on_threads(threads, [&](int64_t thread, int64_t team) {
    const int64_t begin = total / team * thread + std::min(thread, total % team);
    const int64_t end = total / team * (thread + 1) + std::min(thread + 1, total % team);
    int64_t first = 0;
    double sum = 0.0;
    for (int64_t index = 0; index < count && first < end; first += sizes[index++]) {
      const Piece piece{params[index], grads[index], buffers == nullptr ? nullptr : buffers[index],
                        keys == nullptr ? nullptr : keys + 2 * index, cut(begin, first, sizes[index]),
                        cut(end, first, sizes[index])};
      if (piece.start < piece.end) implementation.update(piece, dtypes, *options, squares == nullptr ? nullptr : &sum);
    }
    measured[thread] = sum;
  });
  if (squares != nullptr) *squares = std::accumulate(measured.begin(), measured.end(), 0.0);
}
}
