// Loops over features and gradients, of any of their types, a vector at a time.
#pragma once

#include "dtypes.h"
#include "executor.h"

namespace cgc::CGC_ISA {

// Channels of [C, P] handled as one flat block: whole cache lines of T, about 4 KiB.
template <class T>
index_t block_channels(index_t channels, index_t positions) {
  const index_t row = positions * index_t(sizeof(T));
  index_t lines = 1;
  while (lines < 64 && (lines * row) % 64 != 0) lines *= 2;
  const index_t repeat = maximum(index_t(1), index_t(4096) / (lines * row));
  return minimum(channels, lines * row > 16384 ? index_t(1) : lines * repeat);
}

template <class Acc>
void fill(Acc* to, index_t count, Acc value) {
  for (index_t i = 0; i < count; ++i) to[i] = value;
}

// What a loop multiplies with: numbers that lie in memory, or the same number everywhere.
template <class T>
struct Values {
  const T* from;
  template <class Acc, class Count>
  typename Vector<Acc>::type at(index_t i, Count count) const {
    return load<Acc>(from + i, count);
  }
};

template <class T>
struct Number {
  T value;
  template <class Acc, class Count>
  Acc at(index_t, Count) const {
    return value;
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

// to = from * factors
template <class Acc, class In, class Factors, class Out>
void multiply(const In* from, Factors factors, index_t count, Out* to) {
  each_vector<Acc>(count, [=](index_t i, auto part) {
    store<Acc>(load<Acc>(from + i, part) * factors.template at<Acc>(i, part), to + i, part);
  });
}

// sums += from * factors
template <class Acc, class In, class Factors>
void add_products(const In* from, Factors factors, index_t count, Acc* sums) {
  each_vector<Acc>(count, [=](index_t i, auto part) {
    const auto product = load<Acc>(from + i, part) * factors.template at<Acc>(i, part);
    store<Acc>(load<Acc>(sums + i, part) + product, sums + i, part);
  });
}

// From or to a narrower type.
template <class Acc, class In, class Out>
void convert(const In* from, index_t count, Out* to) {
  each_vector<Acc>(count, [=](index_t i, auto part) { store<Acc>(load<Acc>(from + i, part), to + i, part); });
}

// Rows of `times` equal numbers as factors; which of a vector's numbers belong to which row is looked up.
template <class Acc>
class Repetition {
  using V = typename Vector<Acc>::type;
  using Places = decltype(V{} < V{});
  static constexpr index_t lanes = Vector<Acc>::lanes;

 public:
  // Numbers that must lie behind the last.
  static constexpr index_t padding = lanes;

  Repetition(index_t rows, index_t times)
      : vectors_(rows == 0 ? 0 : (rows * times + lanes - 1) / lanes), first_(vectors_), places_(vectors_) {
    for (index_t v = 0; v < vectors_; ++v) {
      first_[v] = v * lanes / times;
      for (index_t i = 0; i < lanes; ++i) places_[v][i] = (v * lanes + i) / times - first_[v];
    }
  }

  // The factors that are numbers[0] `times` times, numbers[1] `times` times, ...
  auto of(const Acc* numbers) const { return Factors{numbers, first_, places_}; }

 private:
  struct Factors {
    const Acc* numbers;
    const index_t* first;
    const Places* places;

    template <class, class Count>
    V at(index_t i, Count) const {
      return permuted(load<Acc>(numbers + first[i / lanes]), places[i / lanes]);
    }
  };

  index_t vectors_;
  Buffer<index_t> first_;
  Buffer<Places> places_;
};

// Four sums at once, since each waits for its own chain of additions.
template <class Acc, class A, class B>
Acc dot(const A* a, const B* b, index_t count) {
  constexpr index_t lanes = Vector<Acc>::lanes;
  typename Vector<Acc>::type sums[4] = {};
  index_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    for (index_t k = 0; k < 4; ++k) sums[k] += load<Acc>(a + i + k * lanes) * load<Acc>(b + i + k * lanes);
  }
  each_vector<Acc>(count - i,
                   [&](index_t j, auto part) { sums[0] += load<Acc>(a + i + j, part) * load<Acc>(b + i + j, part); });
  sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  Acc total = 0;
  for (index_t k = 0; k < lanes; ++k) total += sums[0][k];
  return total;
}

// Sums of rows of `count` numbers times `scale`.
template <class T, class Acc>
class RowSums {
 public:
  RowSums(const Acc* scale, index_t count) : scale_(scale), count_(count), whole_(count / lanes * lanes) {
    for (index_t i = 0; i < lanes; ++i) mask_[i] = i < lanes - count % lanes ? 0 : -1;
  }

  void operator()(const T* rows, index_t count, Acc* sums) const {
    each_vector<Acc>(count, [&](index_t first, auto part) {
      V tile[lanes] = {};
      for (index_t r = 0; r < part; ++r) tile[r] = row(rows + (first + r) * count_);
      store<Acc>(sums_of<Acc>(tile), sums + first, part);
    });
  }

 private:
  static constexpr index_t lanes = Vector<Acc>::lanes;
  using V = typename Vector<Acc>::type;
  using Mask = decltype(V{} < V{});

  V row(const T* from) const {
    V sum = {};
    for (index_t i = 0; i < whole_; i += lanes) sum += load<Acc>(from + i) * load<Acc>(scale_ + i);
    if (whole_ == count_) return sum;
    if (whole_ == 0) return load<Acc>(from, count_) * load<Acc>(scale_, count_);
    // The last vector begins early enough to end with the row; what was counted before is masked.
    const index_t last = count_ - lanes;
    return sum + masked(load<Acc>(from + last)) * masked(load<Acc>(scale_ + last));
  }

  V masked(V values) const { return V(Mask(values) & mask_); }

  const Acc* scale_;
  index_t count_, whole_;
  Mask mask_;
};

}  // namespace cgc::CGC_ISA
