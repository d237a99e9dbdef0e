#include "elementwise_rows.h"

namespace cpfast::elementwise_loss {

std::tuple<Tensor, Tensor> mse_cuda(Tensor input, Tensor target, std::optional<Tensor> weight,
                                    int64_t reduction, std::optional<Tensor> grad,
                                    std::optional<Tensor> table, std::optional<Tensor> index,
                                    int64_t score) {
  return forward<Loss::kMse>("scored_mse", input, target, weight, std::nullopt, reduction, grad,
                             table, index, score);
}

Tensor mse_backward_cuda(Tensor grad_loss, Tensor input, Tensor target,
                         std::optional<Tensor> weight, int64_t reduction) {
  return backward<Loss::kMse>("scored_mse_backward", grad_loss, input, target, weight, std::nullopt,
                              reduction);
}

STABLE_TORCH_LIBRARY_IMPL(cpfast, CUDA, m) {
  m.impl("scored_mse", TORCH_BOX(&mse_cuda));
  m.impl("scored_mse_backward", TORCH_BOX(&mse_backward_cuda));
}

}  // namespace cpfast::elementwise_loss
