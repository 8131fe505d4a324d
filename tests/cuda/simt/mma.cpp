// mma.sync: the matrices of a warp, from the fragments of its lanes and back (PTX ISA, matrix fragments for mma).
#include <cstring>

#include "internal.h"

namespace simt {
namespace {

// tf32 has ten bits of mantissa; the others are ignored.
double tf32(unsigned bits) {
  bits &= 0xffffe000u;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// d[m, n] += the products a[m, k] b[k, n], which are exact, one after another with k ascending; each sum is rounded.
template <class T, int M, int N, int K>
struct Product {
  double a[M][K], b[K][N];
  T d[M][N];

  void accumulate() {
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < N; ++n) {
        for (int k = 0; k < K; ++k) d[m][n] = add(d[m][n], a[m][k], b[k][n]);
      }
    }
  }
  static float add(float sum, double x, double y) { return float(sum + x * y); }
  static double add(double sum, double x, double y) { return __builtin_fma(x, y, sum); }
};

// Calls visit(fragments of a lane, its group of four lanes, its place in the group).
template <class Fragments, class F>
void each_lane(Warp& warp, char (Lane::*where)[48], F&& visit) {
  for (int i = 0; i < 32; ++i) {
    Fragments lane;
    std::memcpy(&lane, warp.lanes[i].*where, sizeof(lane));
    visit(lane, i / 4, i % 4);
    std::memcpy(warp.lanes[i].*where, &lane, sizeof(lane));
  }
}

void multiply_tf32(Warp& warp) {
  Product<float, 16, 8, 8> whole;
  each_lane<MmaTf32>(warp, &Lane::value, [&](const MmaTf32& lane, int group, int place) {
    for (int i = 0; i < 4; ++i) {
      whole.a[group + i % 2 * 8][place + i / 2 * 4] = tf32(lane.a[i]);
      whole.d[group + i / 2 * 8][place * 2 + i % 2] = lane.d[i];
    }
    for (int i = 0; i < 2; ++i) whole.b[place + i * 4][group] = tf32(lane.b[i]);
  });
  whole.accumulate();
  each_lane<MmaTf32>(warp, &Lane::result, [&](MmaTf32& lane, int group, int place) {
    for (int i = 0; i < 4; ++i) lane.d[i] = whole.d[group + i / 2 * 8][place * 2 + i % 2];
  });
}

void multiply_f64(Warp& warp) {
  Product<double, 8, 8, 4> whole;
  each_lane<MmaF64>(warp, &Lane::value, [&](const MmaF64& lane, int group, int place) {
    whole.a[group][place] = lane.a;
    whole.b[place][group] = lane.b;
    for (int i = 0; i < 2; ++i) whole.d[group][place * 2 + i] = lane.d[i];
  });
  whole.accumulate();
  each_lane<MmaF64>(warp, &Lane::result, [&](MmaF64& lane, int group, int place) {
    for (int i = 0; i < 2; ++i) lane.d[i] = whole.d[group][place * 2 + i];
  });
}

}  // namespace

void multiply(Warp& warp, WarpOp op) { op == WarpOp::mma_tf32 ? multiply_tf32(warp) : multiply_f64(warp); }

}  // namespace simt
