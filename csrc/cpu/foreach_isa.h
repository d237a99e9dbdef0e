// Compiles one kernel file for several instruction sets, so that one binary serves every x86-64:
//
//     #include "isa.h"
//     namespace {
//     #define CPFAST_KERNEL "<op>_kernel.h"
//     #include "foreach_isa.h"
//     }
//     ... CPFAST_DISPATCH(function)(arguments) ...
//
// The kernel file is included once per instruction set, each time in a namespace of its own
// (baseline, v3, v4). target_clones would be shorter, but GCC lowers comparisons of vectors to
// scalars before it makes the clones: layer_statistics ran 20 times slower.

#define CPFAST_VECTOR_BYTES 16
namespace baseline {
#include "simd.h"
#include CPFAST_KERNEL
}  // namespace baseline
#undef CPFAST_VECTOR_BYTES

#ifdef CPFAST_X86_CLONES

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define CPFAST_VECTOR_BYTES 32
namespace v3 {
#include "simd.h"
#include CPFAST_KERNEL
}  // namespace v3
#undef CPFAST_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#define CPFAST_VECTOR_BYTES 64
namespace v4 {
#include "simd.h"
#include CPFAST_KERNEL
}  // namespace v4
#undef CPFAST_VECTOR_BYTES
#pragma GCC pop_options

#endif
