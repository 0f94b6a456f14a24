// Vectors of floats, as wide as this processor's.

#ifndef SEER_JAX_MODELS_CPU_VECTORS_H_
#define SEER_JAX_MODELS_CPU_VECTORS_H_

#include "parallel.h"

// Lanes of a vector, and pixels whose sums fit the registers together.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 6;
#else
constexpr int kLanes = 4, kRows = 8;
#endif

template <int L>
struct Lanes {
  typedef float Type __attribute__((vector_size(L * 4), aligned(4)));
};

template <int L>
inline typename Lanes<L>::Type Load(const float* from) {
  return *reinterpret_cast<const typename Lanes<L>::Type*>(from);
}

template <int L>
inline void Store(float* to, typename Lanes<L>::Type value) {
  *reinterpret_cast<typename Lanes<L>::Type*>(to) = value;
}

// Calls fn<lanes, vectors>(first) on blocks of channels that cover `count`, a
// multiple of 8.
template <typename Fn>
inline void ForBlocks(Index count, Fn&& fn) {
  Index at = 0;
  for (; at + 2 * kLanes <= count; at += 2 * kLanes)
    fn.template operator()<kLanes, 2>(at);
  for (; at + kLanes <= count; at += kLanes)
    fn.template operator()<kLanes, 1>(at);
  if constexpr (kLanes > 8) {
    for (; at < count; at += 8) fn.template operator()<8, 1>(at);
  }
}

#endif  // SEER_JAX_MODELS_CPU_VECTORS_H_
