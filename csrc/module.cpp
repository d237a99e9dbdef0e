// The schemas of all ops, in one place, and the Python module cpfast._C.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "cpu/isa.h"

#include <string>

#ifdef __clang__
#define CPFAST_COMPILER __VERSION__
#else
#define CPFAST_COMPILER "GCC " __VERSION__
#endif

STABLE_TORCH_LIBRARY(cpfast, m) {
  m.def("layer_statistics(Tensor[] params, Tensor[] refs, Tensor? ref_sq_norms=None) -> Tensor");
  m.def("layer_rotation(Tensor[] params, Tensor[] refs, Tensor? ref_sq_norms=None) -> Tensor");
  m.def("layer_sums(Tensor[] params, Tensor[] refs, Tensor? ratio=None) -> Tensor");
  m.def(
      "plan_layers(Tensor[] params, Tensor[] refs) "
      "-> (Tensor plan, int layers, int tiles, int tile)");
  m.def(
      "planned_layer_statistics(Tensor(a!) plan, int layers, int tiles, int tile, "
      "Tensor? ref_sq_norms=None) -> Tensor");
  m.def(
      "planned_layer_rotation(Tensor(a!) plan, int layers, int tiles, int tile, "
      "Tensor? ref_sq_norms=None) -> Tensor");
  m.def(
      "planned_layer_sums(Tensor(a!) plan, int layers, int tiles, int tile, "
      "Tensor? ratio=None) -> Tensor");
  m.def(
      "record_layer_rotation(Tensor(a!) plan, int layers, int tiles, int tile, "
      "Tensor? ref_sq_norms, Tensor(b!) history, Tensor(c!) cursor) -> ()");
  m.def(
      "scored_cross_entropy(Tensor input, Tensor target, Tensor? weight=None, "
      "float label_smoothing=0.0, int ignore_index=-100, int reduction=0, Tensor(a!)? grad=None, "
      "Tensor(b!)? table=None, Tensor? index=None, int score=0, Tensor? class_weight=None, "
      "float z_loss=0.0, Tensor? weight_table=None) "
      "-> (Tensor loss, Tensor scores, Tensor softmax_stats)");
  m.def(
      "scored_cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, "
      "Tensor softmax_stats, Tensor? weight, float label_smoothing, int ignore_index, "
      "int reduction, Tensor? class_weight=None, float z_loss=0.0, Tensor? weight_table=None, "
      "Tensor? index=None) -> Tensor");
  m.def("rescale_gradient(Tensor(a!) grad, Tensor factor) -> ()");
  m.def(
      "scored_binary_cross_entropy(Tensor input, Tensor target, Tensor? weight=None, "
      "Tensor? pos_weight=None, int reduction=0, Tensor(a!)? grad=None, Tensor(b!)? table=None, "
      "Tensor? index=None, int score=0) -> (Tensor loss, Tensor scores)");
  m.def(
      "scored_binary_cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, "
      "Tensor? weight, Tensor? pos_weight, int reduction) -> Tensor");
  m.def(
      "scored_mse(Tensor input, Tensor target, Tensor? weight=None, int reduction=0, "
      "Tensor(a!)? grad=None, Tensor(b!)? table=None, Tensor? index=None, int score=0) "
      "-> (Tensor loss, Tensor scores)");
  m.def(
      "scored_mse_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor? weight, "
      "int reduction) -> Tensor");
  m.def(
      "select_samples(Tensor scores, float keep, int seed, int epoch, int stream=0, "
      "bool shuffle=False, bool exact=True, ScalarType dtype=long) "
      "-> (Tensor indices, Tensor weights, Tensor count)");
  m.def(
      "shuffled_slice(Tensor indices, Tensor count, int start, int size, int seed, int epoch, "
      "int stream=0, Tensor? cursor=None) -> Tensor");
  m.def(
      "augment_batch(Tensor images, Tensor index, Tensor? repeats, Tensor? mean_image, "
      "float[] mean, float[] std, int seed, int epoch, int repeat, bool flip, float shift, "
      "float rotation, int crop, int cutout, ScalarType dtype, int? height=None, int? width=None) "
      "-> Tensor");
  m.def("record_scores(Tensor(a!) scores, Tensor index, Tensor values) -> ()");
}

namespace {

// The definitions come from setup.py.
pybind11::dict build_info() {
  pybind11::dict info;
  info["abi"] = "LibTorch stable ABI, torch >= " CPFAST_OLDEST_TORCH;
  info["built_with_torch"] = CPFAST_BUILT_WITH_TORCH;
  info["compiler"] = CPFAST_COMPILER;
  info["cxx_flags"] = CPFAST_CXX_FLAGS;
  info["cuda"] = CPFAST_CUDA_VERSION;
  info["cuda_architectures"] = CPFAST_CUDA_ARCHITECTURES;
  const char* const names[] = {"baseline", "v3", "v4"};
  info["cpu_kernels"] = names[static_cast<int>(cpfast::kIsa)];
  std::string available;
  for (int i = 0; i <= static_cast<int>(cpfast::best_isa()); ++i)
    available += (i ? " " : "") + std::string(names[i]);
  info["cpu_kernels_here"] = available;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled ops of cpfast; importing it registers torch.ops.cpfast.*";
  m.def("build_info", &build_info,
        "How this extension was built, and which CPU kernels run here: a dict of strings.");
}
