// Batch normalisation of rows of channels, and what mostly follows it, in two
// passes over memory: y = relu((x - mean) / sqrt(var + epsilon) scale + bias +
// add), with or without `add` and relu. float32.
//
// Sums are made of blocks of rows whose number depends on the shape alone, so
// that they are the same whatever the number of threads.

#include <cmath>

#include "parallel.h"

namespace {

// A block of rows is about as large as a cache likes, and there are enough.
struct Blocks {
  Index rows, channels, each, count;

  explicit Blocks(const Array& x) {
    channels = x.dimensions().back();
    rows = x.element_count() / channels;
    each = std::clamp<Index>((1 << 15) / channels, 1, rows);
    each = std::max(each, (rows + 255) / 256);
    count = (rows + each - 1) / each;
  }
  Index First(Index block) const { return block * each; }
  Index Rows(Index block) const { return std::min(rows - block * each, each); }
};

// Sums two rows of partial sums, over all blocks, in their order.
void Total(const Blocks& blocks, const float* partial, double* first,
           double* second) {
  const Index c = blocks.channels;
  std::fill_n(first, c, 0.0);
  std::fill_n(second, c, 0.0);
  for (Index b = 0; b < blocks.count; ++b, partial += 2 * c)
    for (Index i = 0; i < c; ++i)
      first[i] += partial[i], second[i] += partial[c + i];
}

template <bool kRelu, bool kAdd>
void Normalize(const float* __restrict x, const float* __restrict add,
               const float* __restrict factor, const float* __restrict offset,
               float* __restrict y, Index rows, Index channels) {
  for (Index r = 0; r < rows; ++r, x += channels, y += channels) {
    for (Index i = 0; i < channels; ++i) {
      float z = x[i] * factor[i] + offset[i];
      if (kAdd) z += add[i];
      y[i] = kRelu && z < 0 ? 0.0f : z;  // What is no number stays so.
    }
    if (kAdd) add += channels;
  }
}

// The gradient before relu, and its sums alone and times x - mean.
template <bool kRelu, bool kKeep>
void Reduce(const float* __restrict x, const float* __restrict y,
            const float* __restrict dy, const float* __restrict mean,
            float* __restrict sum, float* __restrict product,
            float* __restrict dz, Index rows, Index channels) {
  for (Index r = 0; r < rows; ++r) {
    for (Index i = 0; i < channels; ++i) {
      const float g = kRelu && !(y[i] > 0) ? 0.0f : dy[i];
      sum[i] += g;
      product[i] += g * (x[i] - mean[i]);
      if (kKeep) dz[i] = g;
    }
    x += channels, y += channels, dy += channels;
    if (kKeep) dz += channels;
  }
}

template <bool kRelu>
void Propagate(const float* __restrict x, const float* __restrict y,
               const float* __restrict dy, const float* __restrict by_dz,
               const float* __restrict by_x, const float* __restrict offset,
               float* __restrict dx, Index rows, Index channels) {
  for (Index r = 0; r < rows; ++r) {
    for (Index i = 0; i < channels; ++i) {
      const float g = kRelu && !(y[i] > 0) ? 0.0f : dy[i];
      dx[i] = g * by_dz[i] + x[i] * by_x[i] + offset[i];
    }
    x += channels, y += channels, dy += channels, dx += channels;
  }
}

ffi::Error Forward(ffi::ThreadPool pool, Array x, Array around, Array scale,
                   Array bias, ffi::RemainingArgs rest, Result y, Result mean,
                   Result var, bool relu, float epsilon) {
  const Blocks blocks(x);
  const Index c = blocks.channels;
  const float *in = x.typed_data(), *shift = around.typed_data(),
              *add = nullptr;
  if (rest.size()) add = rest.get<Array>(0)->typed_data();
  float* partial = Scratch(0, blocks.count * 2 * c);
  Parallel(pool, blocks.count, [&](Index b) {
    float* __restrict sum = partial + b * 2 * c, * __restrict square = sum + c;
    std::fill_n(sum, 2 * c, 0.0f);
    const float* __restrict row = in + blocks.First(b) * c;
    for (Index r = 0; r < blocks.Rows(b); ++r, row += c)
      for (Index i = 0; i < c; ++i) {
        const float v = row[i] - shift[i];
        sum[i] += v;
        square[i] += v * v;
      }
  });
  std::vector<double> first(c), second(c);
  Total(blocks, partial, first.data(), second.data());
  std::vector<float> factor(c), offset(c);
  for (Index i = 0; i < c; ++i) {
    const double m = first[i] / blocks.rows;
    const double v = second[i] / blocks.rows - m * m;
    mean->typed_data()[i] = m + shift[i];
    var->typed_data()[i] = v < 0 ? 0 : v;
    factor[i] =
        scale.typed_data()[i] / std::sqrt(var->typed_data()[i] + epsilon);
    offset[i] = bias.typed_data()[i] - mean->typed_data()[i] * factor[i];
  }
  auto normalize =
      relu ? (add ? Normalize<true, true> : Normalize<true, false>)
           : (add ? Normalize<false, true> : Normalize<false, false>);
  Parallel(pool, blocks.count, [&](Index b) {
    const Index at = blocks.First(b) * c;
    normalize(in + at, add ? add + at : nullptr, factor.data(), offset.data(),
              y->typed_data() + at, blocks.Rows(b), c);
  });
  return ffi::Error::Success();
}

// Results: dx, dscale, dbias, and if there was `add` its gradient.
ffi::Error Backward(ffi::ThreadPool pool, Array x, Array y, Array dy,
                    Array mean, Array var, Array scale, Result dx,
                    Result dscale, Result dbias, ffi::RemainingRets rest,
                    bool relu, float epsilon) {
  const Blocks blocks(x);
  const Index c = blocks.channels;
  const float *in = x.typed_data(), *out = y.typed_data(),
              *up = dy.typed_data();
  float* dz = rest.size() ? (*rest.get<Array>(0))->typed_data() : nullptr;
  auto reduce = relu ? (dz ? Reduce<true, true> : Reduce<true, false>)
                     : (dz ? Reduce<false, true> : Reduce<false, false>);
  float* partial = Scratch(0, blocks.count * 2 * c);
  Parallel(pool, blocks.count, [&](Index b) {
    float *sum = partial + b * 2 * c, *product = sum + c;
    std::fill_n(sum, 2 * c, 0.0f);
    const Index at = blocks.First(b) * c;
    reduce(in + at, out + at, up + at, mean.typed_data(), sum, product,
           dz ? dz + at : nullptr, blocks.Rows(b), c);
  });
  std::vector<double> first(c), second(c);
  Total(blocks, partial, first.data(), second.data());
  std::vector<float> by_dz(c), by_x(c), offset(c);
  for (Index i = 0; i < c; ++i) {
    const double inverse = 1 / std::sqrt(double(var.typed_data()[i]) + epsilon);
    const double factor = scale.typed_data()[i] * inverse;
    // Of x - mean, how much of it the variance takes away.
    const double share = -factor * second[i] * inverse * inverse / blocks.rows;
    dscale->typed_data()[i] = second[i] * inverse;
    dbias->typed_data()[i] = first[i];
    by_dz[i] = factor;
    by_x[i] = share;
    offset[i] = -factor * first[i] / blocks.rows - share * mean.typed_data()[i];
  }
  auto propagate = relu && !dz ? Propagate<true> : Propagate<false>;
  Parallel(pool, blocks.count, [&](Index b) {
    const Index at = blocks.First(b) * c;
    propagate(in + at, out + at, (dz ? dz : up) + at, by_dz.data(), by_x.data(),
              offset.data(), dx->typed_data() + at, blocks.Rows(b), c);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SeerBatchNorm, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<bool>("relu")
                                  .Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(SeerBatchNormGradients, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .RemainingRets()
                                  .Attr<bool>("relu")
                                  .Attr<float>("epsilon"));
