// Loops over rows of features and gradients, of any of their types, a pack at a time.
//
// A row of 7 x 7 numbers does not fill packs. Where what follows a row may be read, its last pack is read whole, which
// costs less than reading part of it; what does not belong to the row is dropped.
#pragma once

#include "dtypes.h"
#include "executor.h"

namespace cgc::CGC_ISA {

// Lambdas of a loop become part of it; left to itself GCC calls some.
#define CGC_LOOP [[gnu::flatten, gnu::noinline]]

template <class T>
constexpr index_t packs_of(index_t count) {
  return (count + Pack<T>::lanes - 1) / Pack<T>::lanes;
}

template <class T>
constexpr index_t padded(index_t count) {
  return packs_of<T>(count) * Pack<T>::lanes;
}

// How many of the rows of `width` in `total` numbers have all packs of theirs among these.
template <class T>
index_t roomy_rows(index_t total, index_t width) {
  return total < padded<T>(width) ? 0 : (total - padded<T>(width)) / width + 1;
}

// Channels of [C, P] in a block: whole cache lines of T, about 4 KiB.
template <class T>
index_t block_channels(index_t channels, index_t positions) {
  const index_t row = positions * index_t(sizeof(T));
  index_t lines = 1;
  while (lines < 64 && (lines * row) % 64 != 0) lines *= 2;
  const index_t repeat = maximum(index_t(1), index_t(4096) / (lines * row));
  return minimum(channels, lines * row > 16384 ? index_t(1) : lines * repeat);
}

template <class T>
void fill(T* to, index_t count, T value) {
  for (index_t i = 0; i < count; ++i) to[i] = value;
}

// Calls body(i, count) for every pack of `count` numbers.
template <class T, class F>
[[gnu::always_inline]] inline void each_pack(index_t count, F body) {
  each_part<Pack<T>::lanes>(count, body);
}

// Fetches from the page after: what prefetches in hardware stops at the end of a page.
inline void read_ahead(const void* from) { __builtin_prefetch(static_cast<const char*>(from) + 6144); }

// What a loop multiplies with: numbers in memory, the same number everywhere, or packs.
template <class T>
struct Values {
  const T* from;
  template <class A, class Count>
  Pack<A> at(index_t i, Count count) const {
    return load_pack<A>(from + i, count);
  }
};

template <class T>
struct Number {
  T value;
  template <class A, class Count>
  Pack<A> at(index_t, Count) const {
    return pack_of<A>(value);
  }
};

template <class T>
struct Packs {
  const Pack<T>* from;
  template <class A, class Count>
  const Pack<A>& at(index_t i, Count) const {
    return from[i / Pack<A>::lanes];
  }
};

template <class T>
Values<T> values(const T* from) {
  return {from};
}

template <class T>
Number<T> number(T value) {
  return {value};
}

template <class T>
Packs<T> packs(const Pack<T>* from) {
  return {from};
}

// Numbers as packs, packs as numbers, numbers as those of another type.
template <class A, class In>
CGC_LOOP void pack(const In* from, index_t count, Pack<A>* to) {
  each_pack<A>(count, [=](index_t i, auto part) { to[i / Pack<A>::lanes] = load_pack<A>(from + i, part); });
}

template <class A, class Out>
CGC_LOOP void unpack(const Pack<A>* from, index_t count, Out* to) {
  each_pack<A>(count, [=](index_t i, auto part) { store_pack(from[i / Pack<A>::lanes], to + i, part); });
}

template <class A, class In, class Out>
CGC_LOOP void convert(const In* from, index_t count, Out* to) {
  each_pack<A>(count, [=](index_t i, auto part) { store_pack(load_pack<A>(from + i, part), to + i, part); });
}

// to = numbers [begin, end) of `total` in rows of `width`, the last may be shorter: from(row) times factor(row). Writes
// some of a row's last pack behind it.
template <class A, class From, class Factor, class Out>
CGC_LOOP void multiply_rows(From from, Factor factor, index_t begin, index_t end, index_t total, index_t width,
                            Out* to) {
  const index_t roomy = roomy_rows<A>(total, width);
  for (index_t r = begin / width; r * width < end; ++r, to += width) {
    const auto row = from(r);
    const auto scale = factor(r);
    each_pack<A>(r < roomy ? padded<A>(width) : minimum(width, total - r * width), [=](index_t i, auto part) {
      store_pack(row.template at<A>(i, part) * scale.template at<A>(i, part), to + i);
    });
  }
}

// sums += `rows` rows, `width` apart, times factor(0), factor(1), ...; their sum first, since the next rows wait for
// what is in memory.
template <class A, index_t rows, class In, class Factor>
[[gnu::always_inline]] inline void add_rows(const In* from, index_t width, index_t count, Factor factor,
                                            Pack<A>* sums) {
  each_pack<A>(count, [=](index_t i, auto part) {
    Pack<A> sum = load_pack<A>(from + i, part) * factor(0).template at<A>(i, part);
    for (index_t r = 1; r < rows; ++r) {
      sum += load_pack<A>(from + r * width + i, part) * factor(r).template at<A>(i, part);
    }
    sums[i / Pack<A>::lanes] += sum;
  });
}

// sums = the sum of the rows of `width` in `total` numbers times factor(row); the last row may be shorter.
template <class A, class In, class Factor>
CGC_LOOP void sum_rows(const In* from, index_t total, index_t width, Factor factor, Pack<A>* sums) {
  constexpr index_t together = 4;
  const index_t roomy = roomy_rows<A>(total, width);
  fill(sums, packs_of<A>(width), {});
  index_t r = 0;
  for (; r + together <= roomy; r += together) {
    read_ahead(from + r * width);
    const auto rows = [=](index_t k) { return factor(r + k); };
    add_rows<A, together>(from + r * width, width, padded<A>(width), rows, sums);
  }
  for (; r * width < total; ++r) {
    const index_t count = r < roomy ? padded<A>(width) : minimum(width, total - r * width);
    add_rows<A, 1>(from + r * width, width, count, [=](index_t) { return factor(r); }, sums);
  }
}

// The sum of one row times factor: four sums at once, since each waits for its own chain of additions.
template <class A, class Factor>
CGC_LOOP typename Pack<A>::Acc sum_row(const A* from, Factor factor, index_t count) {
  using Acc = typename Pack<A>::Acc;
  constexpr index_t lanes = Pack<A>::lanes;
  constexpr Constant<lanes> whole;
  Pack<A> sums[4] = {};
  index_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    for (index_t k = 0; k < 4; ++k) {
      sums[k] += load_pack<A>(from + i + k * lanes) * factor.template at<A>(i + k * lanes, whole);
    }
  }
  each_pack<A>(count - i, [&](index_t j, auto part) {
    sums[0] += load_pack<A>(from + i + j, part) * factor.template at<A>(i + j, part);
  });
  for (index_t k = 1; k < 4; ++k) sums[0] += sums[k];
  const auto last = sums[0].sum();
  Acc total = 0;
  for (index_t k = 0; k < Vector<Acc>::lanes; ++k) total += last[k];
  return total;
}

// The sum of every row of [rows, width] times `scale`.
template <class A>
class RowSums {
  using Acc = typename Pack<A>::Acc;
  using V = typename Vector<Acc>::type;
  using Mask = decltype(V{} < V{});
  static constexpr index_t lanes = Pack<A>::lanes, tile = Vector<Acc>::lanes, together = minimum<index_t>(tile, 4);

 public:
  RowSums(const Pack<A>* scale, index_t width) : scale_(scale), width_(width), whole_(width / lanes * lanes) {
    Acc inside[lanes];
    for (index_t i = 0; i < lanes; ++i) inside[i] = i < width - whole_ ? 1 : 0;
    const Pack<A> pack = load_pack<A>(inside);
    for (index_t i = 0; i < Pack<A>::size; ++i) mask_[i] = pack.vectors[i] != 0;
  }

  // sums: room for whole vectors.
  template <class In>
  CGC_LOOP void operator()(const In* from, index_t rows, Acc* sums) const {
    const index_t roomy = roomy_rows<A>(rows * width_, width_);
    for (index_t first = 0; first < rows; first += tile, from += tile * width_) {
      V row_sums[tile];
      read_ahead(from);
      if (first + tile <= roomy) {
        for (index_t r = 0; r < tile; r += together) add<together>(from + r * width_, Constant<lanes>(), row_sums + r);
      } else {
        for (auto& row_sum : row_sums) row_sum = V{};
        for (index_t r = 0; r < minimum(tile, rows - first); ++r) {
          add<1>(from + r * width_, width_ - whole_, row_sums + r);
        }
      }
      store(sums_of<Acc>(row_sums), sums + first);
    }
  }

 private:
  // `rows` rows share what they are multiplied with.
  template <index_t rows, class In, class Tail>
  void add(const In* from, Tail tail, V* sums) const {
    Pack<A> totals[rows] = {};
    for (index_t i = 0; i < whole_; i += lanes) {
      const Pack<A> scale = scale_[i / lanes];
      for (index_t r = 0; r < rows; ++r) totals[r] += load_pack<A>(from + r * width_ + i) * scale;
    }
    if (whole_ < width_) {
      const Pack<A> scale = scale_[whole_ / lanes];
      for (index_t r = 0; r < rows; ++r) totals[r] += masked(load_pack<A>(from + r * width_ + whole_, tail)) * scale;
    }
    for (index_t r = 0; r < rows; ++r) sums[r] = totals[r].sum();
  }

  Pack<A> masked(Pack<A> pack) const {
    for (index_t i = 0; i < Pack<A>::size; ++i) pack.vectors[i] = V(Mask(pack.vectors[i]) & mask_[i]);
    return pack;
  }

  const Pack<A>* scale_;
  index_t width_, whole_;
  Mask mask_[Pack<A>::size];
};

}  // namespace cgc::CGC_ISA
