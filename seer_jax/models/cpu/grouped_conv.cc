// The grouped 3x3 convolution and its gradients: NHWC, padding 1, float32.
//
// A unit of work is a chunk of output pixels of one group of channels. Its
// input pixels are copied into a buffer with a border of zeros, after which
// every tap of every pixel is at a constant offset and all three operations are
// small matrix products with their sums in registers:
//
// * forward: y[pixel, o] sums x[pixel + t, i] k[t, i, o] over taps t and i;
// * input gradient: the same of dy, with taps turned round and i, o exchanged;
//   of stride 2, each parity of rows and columns has its own taps;
// * kernel gradient: dk[t, i, o] sums x[pixel + t, i] dy[pixel, o] over pixels.
//
// Sums have the same order whatever the number of threads.

#include <cstring>

#include "parallel.h"
#include "vectors.h"

namespace {

// ---------------------------------------------------------------- shapes

struct Shape {
  Index images, height, width, channels;  // Of x.
  Index stride, group;                    // Channels a group.
  Index out_height, out_width;            // Of y.
  Index groups() const { return channels / group; }
};

Shape ShapeOf(const Array& x, const Array& kernel, Index stride) {
  auto d = x.dimensions();
  return {d[0],
          d[1],
          d[2],
          d[3],
          stride,
          kernel.dimensions()[2],
          (d[1] - 1) / stride + 1,
          (d[2] - 1) / stride + 1};
}

// Rows of output of some images, about as many pixels as caches like.
struct Chunks {
  Index images, rows;  // At a time.
  Index image_blocks, row_blocks;

  Chunks(Index all, Index height, Index width, Index pixels) {
    rows = std::clamp<Index>(pixels / width, 1, height);
    images = rows < height
                 ? 1
                 : std::clamp<Index>(pixels / (height * width), 1, all);
    image_blocks = (all + images - 1) / images;
    row_blocks = (height + rows - 1) / rows;
  }
  Index count() const { return image_blocks * row_blocks; }
};

// Part of an array of images, one group of its channels.
struct Part {
  Index image, images;    // First, and how many.
  Index row, rows;        // First (may be -1), and how many, border included.
  Index column, columns;  // Likewise.
};

// Copies a part to [images, rows, columns, group], zeros outside.
void Gather(const float* from, Index height, Index width, Index channels,
            Index first, Index group, const Part& part, float* to) {
  for (Index n = 0; n < part.images; ++n) {
    for (Index r = part.row; r < part.row + part.rows; ++r) {
      const float* line =
          from + ((part.image + n) * height + r) * width * channels + first;
      for (Index c = part.column; c < part.column + part.columns; ++c) {
        if (r < 0 || r >= height || c < 0 || c >= width) {
          for (Index i = 0; i < group; i += 8)
            Store<8>(to + i, typename Lanes<8>::Type{});
        } else {
          const float* pixel = line + c * channels;
          for (Index i = 0; i < group; i += 8)
            Store<8>(to + i, Load<8>(pixel + i));
        }
        to += group;
      }
    }
  }
}

// ---------------------------------------------------------------- products

// Sums for kRows pixels over taps and channels; a[m] points to pixel m at the
// first tap, and results go to y[m] for m < count.
template <int L, int V>
inline void Multiply(const float* const* a, const Index* taps, int tap_count,
                     Index group, const float* kernels, float* const* y,
                     int count) {
  typedef typename Lanes<L>::Type Vec;
  Vec sum[kRows][V] = {};
  const float* pixel[kRows];
  for (int m = 0; m < kRows; ++m) pixel[m] = a[m];
  for (int t = 0; t < tap_count; ++t) {
    const Index offset = taps[t];
    for (Index i = 0; i < group; ++i) {
      Vec w[V];
      for (int v = 0; v < V; ++v) w[v] = Load<L>(kernels + v * L);
      kernels += group;
      for (int m = 0; m < kRows; ++m)
        for (int v = 0; v < V; ++v) sum[m][v] += w[v] * pixel[m][offset + i];
    }
  }
  for (int m = 0; m < count; ++m)
    for (int v = 0; v < V; ++v) Store<L>(y[m] + v * L, sum[m][v]);
}

// Sums over `count` pixels for kRows input channels of one tap.
template <int L, int V>
inline void Correlate(const float* x, const Index* pixels, Index count,
                      const float* dy, Index group, float* dk) {
  typedef typename Lanes<L>::Type Vec;
  Vec sum[8][V];
  for (int i = 0; i < 8; ++i)
    for (int v = 0; v < V; ++v) sum[i][v] = Load<L>(dk + i * group + v * L);
  for (Index p = 0; p < count; ++p) {
    const float* pixel = x + pixels[p];
    Vec g[V];
    for (int v = 0; v < V; ++v) g[v] = Load<L>(dy + p * group + v * L);
    for (int i = 0; i < 8; ++i)
      for (int v = 0; v < V; ++v) sum[i][v] += g[v] * pixel[i];
  }
  for (int i = 0; i < 8; ++i)
    for (int v = 0; v < V; ++v) Store<L>(dk + i * group + v * L, sum[i][v]);
}

// A list of taps: offsets in rows and columns, and which of the nine it is.
struct Tap {
  Index row, column, which;
};

// One group of one chunk of a convolution: output pixels of `rows` x `columns`
// a step of `out_step` apart, from input pixels a step of `in_step` apart.
struct Product {
  const float* in;
  Index in_height, in_width, in_step;
  float* out;
  Index out_height, out_width, out_step, out_row, out_column;
  Index rows, columns;  // Of the output, at that step.
  Index channels, group;
  std::vector<Tap> taps;

  void Run(Index image, Index images, Index row, Index count_rows, Index g,
           const float* kernels) const {
    Index low_r = 0, high_r = 0, low_c = 0, high_c = 0;
    for (const Tap& tap : taps) {
      low_r = std::min(low_r, tap.row), high_r = std::max(high_r, tap.row);
      low_c = std::min(low_c, tap.column),
      high_c = std::max(high_c, tap.column);
    }
    Part part{image,
              images,
              row * in_step + low_r,
              (count_rows - 1) * in_step + 1 + high_r - low_r,
              low_c,
              (columns - 1) * in_step + 1 + high_c - low_c};
    float* x = Scratch(0, part.images * part.rows * part.columns * group);
    Gather(in, in_height, in_width, channels, g * group, group, part, x);
    Index offsets[9];
    for (size_t t = 0; t < taps.size(); ++t)
      offsets[t] =
          ((taps[t].row - low_r) * part.columns + taps[t].column - low_c) *
          group;
    const Index per_image = count_rows * columns, total = images * per_image;
    for (Index first = 0; first < total; first += kRows) {
      const int count = std::min<Index>(kRows, total - first);
      const float* a[kRows];
      float* y[kRows];
      for (int m = 0; m < kRows; ++m) {
        const Index at = first + std::min(m, count - 1);
        const Index n = at / per_image, r = at % per_image / columns,
                    c = at % columns;
        a[m] =
            x + ((n * part.rows + r * in_step) * part.columns + c * in_step) *
                    group;
        y[m] = out +
               (((image + n) * out_height + (row + r) * out_step + out_row) *
                    out_width +
                c * out_step + out_column) *
                   channels +
               g * group;
      }
      ForBlocks(group, [&]<int L, int V>(Index block) {
        float* to[kRows];
        for (int m = 0; m < kRows; ++m) to[m] = y[m] + block;
        Multiply<L, V>(a, offsets, taps.size(), group, kernels + block, to,
                       count);
      });
    }
  }
};

// Runs a product over all chunks and groups; `kernels_of(g, to)` writes a
// group's kernels as [taps, group, group].
template <typename Fill>
void Convolve(ffi::ThreadPool& pool, const Product& product, Index images,
              const Fill& kernels_of) {
  if (product.rows < 1 || product.columns < 1) return;
  const Index groups = product.channels / product.group;
  const Index size = product.taps.size() * product.group * product.group;
  float* kernels = Scratch(1, groups * size);
  Parallel(pool, groups, [&](Index g) { kernels_of(g, kernels + g * size); });
  const Chunks chunks(images, product.rows, product.columns, 128);
  Parallel(pool, chunks.count() * groups, [&](Index unit) {
    const Index g = unit % groups, chunk = unit / groups;
    const Index image = chunk / chunks.row_blocks * chunks.images;
    const Index row = chunk % chunks.row_blocks * chunks.rows;
    product.Run(image, std::min(chunks.images, images - image), row,
                std::min(chunks.rows, product.rows - row), g,
                kernels + g * size);
  });
}

// ---------------------------------------------------------------- operations

void Forward(ffi::ThreadPool& pool, const Shape& s, const float* x,
             const float* kernel, float* y) {
  Product product{x,
                  s.height,
                  s.width,
                  s.stride,
                  y,
                  s.out_height,
                  s.out_width,
                  1,
                  0,
                  0,
                  s.out_height,
                  s.out_width,
                  s.channels,
                  s.group,
                  {}};
  for (Index t = 0; t < 9; ++t)
    product.taps.push_back({t / 3 - 1, t % 3 - 1, t});
  Convolve(pool, product, s.images, [&](Index g, float* to) {
    for (Index row = 0; row < 9 * s.group; ++row)
      std::memcpy(to + row * s.group, kernel + row * s.channels + g * s.group,
                  s.group * sizeof(float));
  });
}

void InputGradient(ffi::ThreadPool& pool, const Shape& s, const float* kernel,
                   const float* dy, float* dx) {
  for (Index parity = 0; parity < s.stride * s.stride; ++parity) {
    const Index pr = parity / s.stride, pc = parity % s.stride;
    Product product{dy,
                    s.out_height,
                    s.out_width,
                    1,
                    dx,
                    s.height,
                    s.width,
                    s.stride,
                    pr,
                    pc,
                    (s.height - pr + s.stride - 1) / s.stride,
                    (s.width - pc + s.stride - 1) / s.stride,
                    s.channels,
                    s.group,
                    {}};
    for (Index t = 0; t < 9; ++t) {
      // Row r of x is under row q of the kernel at row (r + 1 - q) / stride of
      // y.
      const Index r = pr + 1 - t / 3, c = pc + 1 - t % 3;
      if (r % s.stride == 0 && c % s.stride == 0)
        product.taps.push_back({r / s.stride, c / s.stride, t});
    }
    Convolve(pool, product, s.images, [&](Index g, float* to) {
      for (const Tap& tap : product.taps)
        for (Index o = 0; o < s.group; ++o)
          for (Index i = 0; i < s.group; ++i)
            *to++ = kernel[(tap.which * s.group + i) * s.channels +
                           g * s.group + o];
    });
  }
}

void KernelGradient(ffi::ThreadPool& pool, const Shape& s, const float* x,
                    const float* dy, float* dk) {
  const Index size = 9 * s.group * s.group, groups = s.groups();
  const Chunks chunks(s.images, s.out_height, s.out_width, 128);
  // By shape alone, so that sums do not depend on threads.
  const Index slices = std::clamp<Index>(32 / groups, 1, chunks.count());
  float* sums = Scratch(1, groups * slices * size);
  Parallel(pool, groups * slices, [&](Index unit) {
    const Index g = unit % groups, slice = unit / groups;
    float* sum = sums + unit * size;
    std::fill_n(sum, size, 0.0f);
    const Index first = slice * chunks.count() / slices;
    const Index last = (slice + 1) * chunks.count() / slices;
    std::vector<Index> pixels;
    for (Index chunk = first; chunk < last; ++chunk) {
      const Index image = chunk / chunks.row_blocks * chunks.images;
      const Index images = std::min(chunks.images, s.images - image);
      const Index row = chunk % chunks.row_blocks * chunks.rows;
      const Index rows = std::min(chunks.rows, s.out_height - row);
      const Part in{image,
                    images,
                    row * s.stride - 1,
                    (rows - 1) * s.stride + 3,
                    -1,
                    (s.out_width - 1) * s.stride + 3};
      const Part out{image, images, row, rows, 0, s.out_width};
      float* a = Scratch(0, images * in.rows * in.columns * s.group);
      float* b = Scratch(2, images * rows * s.out_width * s.group);
      Gather(x, s.height, s.width, s.channels, g * s.group, s.group, in, a);
      Gather(dy, s.out_height, s.out_width, s.channels, g * s.group, s.group,
             out, b);
      pixels.clear();
      for (Index n = 0; n < images; ++n)
        for (Index r = 0; r < rows; ++r)
          for (Index c = 0; c < s.out_width; ++c)
            pixels.push_back(
                ((n * in.rows + r * s.stride) * in.columns + c * s.stride) *
                s.group);
      for (Index t = 0; t < 9; ++t) {
        const float* under = a + (t / 3 * in.columns + t % 3) * s.group;
        for (Index i = 0; i < s.group; i += 8)
          ForBlocks(s.group, [&]<int L, int V>(Index block) {
            Correlate<L, V>(under + i, pixels.data(), pixels.size(), b + block,
                            s.group, sum + (t * s.group + i) * s.group + block);
          });
      }
    }
  });
  Parallel(pool, groups, [&](Index g) {
    for (Index row = 0; row < 9 * s.group; ++row)
      for (Index o = 0; o < s.group; ++o) {
        float total = 0;
        for (Index slice = 0; slice < slices; ++slice)
          total += sums[(slice * groups + g) * size + row * s.group + o];
        dk[row * s.channels + g * s.group + o] = total;
      }
  });
}

ffi::Error ForwardCall(ffi::ThreadPool pool, Array x, Array kernel, Result y,
                       int64_t stride) {
  Forward(pool, ShapeOf(x, kernel, stride), x.typed_data(), kernel.typed_data(),
          y->typed_data());
  return ffi::Error::Success();
}

ffi::Error BackwardCall(ffi::ThreadPool pool, Array x, Array kernel, Array dy,
                        Result dx, Result dk, int64_t stride) {
  const Shape shape = ShapeOf(x, kernel, stride);
  InputGradient(pool, shape, kernel.typed_data(), dy.typed_data(),
                dx->typed_data());
  KernelGradient(pool, shape, x.typed_data(), dy.typed_data(),
                 dk->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SeerGroupedConv, ForwardCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(SeerGroupedConvGradients, BackwardCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("stride"));
