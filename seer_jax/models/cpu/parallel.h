// What the kernels have in common: threads, memory to work in, names.

#ifndef SEER_JAX_MODELS_CPU_PARALLEL_H_
#define SEER_JAX_MODELS_CPU_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Index = int64_t;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

// Runs fn(0) ... fn(count - 1) on XLA's threads and on the calling one. The
// caller takes whatever nobody has begun, and so never waits for a thread that
// is busy elsewhere.
template <typename Fn>
void Parallel(ffi::ThreadPool& pool, Index count, const Fn& fn) {
  struct Shared {
    std::atomic<Index> next{0};
    std::mutex mutex;
    std::condition_variable done;
    int running = 0;
    bool closed = false;
  };
  const Index threads = std::max<Index>(pool.num_threads(), 1);
  if (threads == 1 || count == 1) {
    for (Index i = 0; i < count; ++i) fn(i);
    return;
  }
  const Index grain = std::max<Index>(1, count / (threads * 8));
  auto take = [count, grain, &fn](Shared& shared) {
    for (;;) {
      const Index first = shared.next.fetch_add(grain);
      if (first >= count) return;
      const Index last = std::min(first + grain, count);
      for (Index i = first; i < last; ++i) fn(i);
    }
  };
  auto shared = std::make_shared<Shared>();
  for (Index t = 1; t < std::min(threads, count); ++t) {
    pool.Schedule([shared, take]() {
      {
        std::lock_guard<std::mutex> lock(shared->mutex);
        if (shared->closed) return;  // `fn` may be gone.
        ++shared->running;
      }
      take(*shared);
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (--shared->running == 0) shared->done.notify_one();
    });
  }
  take(*shared);
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->closed = true;
  shared->done.wait(lock, [&] { return shared->running == 0; });
}

// Memory of this thread, one array for each `which`, until the next such call.
inline float* Scratch(int which, size_t size) {
  thread_local std::vector<float> buffers[3];
  if (buffers[which].size() < size) buffers[which].resize(size);
  return buffers[which].data();
}

#endif  // SEER_JAX_MODELS_CPU_PARALLEL_H_
