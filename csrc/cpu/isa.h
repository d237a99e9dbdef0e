// What a kernel file needs from outside, and the choice among its instruction sets at run time.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string_view>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define CPFAST_X86_CLONES
// Of a function's name with its template arguments, which have commas.
#define CPFAST_DISPATCH(...)                                    \
  (::cpfast::kIsa == ::cpfast::Isa::kV4       ? v4::__VA_ARGS__ \
       : ::cpfast::kIsa == ::cpfast::Isa::kV3 ? v3::__VA_ARGS__ \
                                              : baseline::__VA_ARGS__)
#else
#define CPFAST_DISPATCH(...) baseline::__VA_ARGS__
#endif

namespace cpfast {

enum class Isa { kBaseline, kV3, kV4 };

inline Isa best_isa() {
#ifdef CPFAST_X86_CLONES
  __builtin_cpu_init();  // others may not have run yet when this library is loaded
  if (__builtin_cpu_supports("x86-64-v4")) return Isa::kV4;
  if (__builtin_cpu_supports("x86-64-v3")) return Isa::kV3;
#endif
  return Isa::kBaseline;
}

// CPFAST_ISA asks for a lesser one, which is for tests. The Python package refuses other names, and
// those that the machine lacks.
inline Isa chosen_isa() {
  const char* name = std::getenv("CPFAST_ISA");
  const std::string_view asked = name ? name : "";
  return std::min(asked == "baseline" ? Isa::kBaseline
                      : asked == "v3" ? Isa::kV3
                                      : Isa::kV4,
                  best_isa());
}

inline const Isa kIsa = chosen_isa();

}  // namespace cpfast
