// What threads of a dependent launch see of their predecessor's results before they have waited: bytes of 0xFF.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace simt {

class Poison {
 public:
  // Around each launch. What it wrote is what differs in the watched tensors: a value written over its equal is missed.
  void before_launch();
  void after_launch(std::uintptr_t stream);
  // What the running launch, on `stream`, must not rely on before the wait.
  void prepare(std::uintptr_t stream);
  bool empty() const { return hidden.empty(); }
  // Puts the poison in place, or the true values back.
  void show(bool truth);
  void finish();
  void forget();

 private:
  struct Range {
    char* begin;
    std::size_t bytes;
  };
  static void add(std::vector<Range>& ranges, char* begin, std::size_t bytes);
  static void join(std::vector<Range>& ranges);

  struct Written {
    std::uint32_t launch;
    std::vector<Range> ranges;
  };
  std::unordered_map<std::uintptr_t, std::vector<Written>> written;  // by launches of each stream that may still run
  std::vector<std::vector<char>> before;                             // the launch, of each tensor
  std::vector<Range> hidden;
  std::vector<char> truth;  // the bytes of `hidden`, while the poison is in place
  bool in_place = false;
};

extern Poison poison;

}  // namespace simt
