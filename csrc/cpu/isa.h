// What a kernel file needs from outside, and the choice among its instruction sets at run time.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define CPFAST_X86_CLONES
#define CPFAST_DISPATCH(function)                              \
  (__builtin_cpu_supports("x86-64-v4")       ? v4::function    \
       : __builtin_cpu_supports("x86-64-v3") ? v3::function    \
                                             : baseline::function)
#else
#define CPFAST_DISPATCH(function) baseline::function
#endif
