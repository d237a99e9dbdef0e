#include "elementwise_rows.h"

namespace cpfast::elementwise_loss {

std::tuple<Tensor, Tensor> binary_cross_entropy_cuda(Tensor input, Tensor target,
                                                     std::optional<Tensor> weight,
                                                     std::optional<Tensor> pos_weight,
                                                     int64_t reduction, std::optional<Tensor> grad,
                                                     std::optional<Tensor> table,
                                                     std::optional<Tensor> index, int64_t score) {
  return forward<Loss::kBinaryCrossEntropy>("scored_binary_cross_entropy", input, target, weight,
                                            pos_weight, reduction, grad, table, index, score);
}

Tensor binary_cross_entropy_backward_cuda(Tensor grad_loss, Tensor input, Tensor target,
                                          std::optional<Tensor> weight,
                                          std::optional<Tensor> pos_weight, int64_t reduction) {
  return backward<Loss::kBinaryCrossEntropy>("scored_binary_cross_entropy_backward", grad_loss,
                                             input, target, weight, pos_weight, reduction);
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("scored_binary_cross_entropy", TORCH_BOX(&binary_cross_entropy_cuda));
  m.impl("scored_binary_cross_entropy_backward", TORCH_BOX(&binary_cross_entropy_backward_cuda));
}

}  // namespace cpfast::elementwise_loss
