// The CUDA half of the border to Python: integers and floats in; None or the text of an error out.
#include <nanobind/nanobind.h>

#include "../border.h"
#include "launch.h"

namespace nb = nanobind;
using namespace rl_think;

namespace {

const char* forward(int dtype, Address logits, int64_t inner, int64_t outer_stride, int64_t inner_stride, int64_t vocab,
                    Address labels, int64_t num_rows, Address listed, int64_t num_listed, Address mask,
                    double temperature, double softcap, Address logprob, Address entropy, Address max, Address log_sum,
                    int splits, Address scratch, int device, Address stream) {
  return gpu::forward(grid(dtype, logits, inner, outer_stride, inner_stride), vocab, at<const int64_t>(labels),
                      selection(num_rows, listed, num_listed, mask), {temperature, softcap},
                      {at<float>(logprob), at<float>(entropy), at<float>(max), at<float>(log_sum)},
                      {splits, at<float>(scratch)}, {device, at<void>(stream)});
}

const char* partials(int dtype, Address logits, int64_t inner, int64_t outer_stride, int64_t inner_stride,
                     int64_t vocab, Address labels, int64_t first, int64_t num_rows, Address listed, int64_t num_listed,
                     Address mask, double temperature, double softcap, Address max, Address sum, Address label,
                     int splits, Address scratch, int device, Address stream) {
  return gpu::partials(grid(dtype, logits, inner, outer_stride, inner_stride), vocab, at<const int64_t>(labels), first,
                       selection(num_rows, listed, num_listed, mask), {temperature, softcap},
                       {at<float>(max), at<float>(sum), at<float>(label)}, {splits, at<float>(scratch)},
                       {device, at<void>(stream)});
}

const char* backward(int dtype, Address logits, int64_t inner, int64_t outer_stride, int64_t inner_stride, Address out,
                     int64_t out_inner, int64_t out_outer_stride, int64_t out_inner_stride, int64_t vocab,
                     Address labels, int64_t first, int64_t num_rows, Address listed, int64_t num_listed, Address mask,
                     double temperature, double softcap, Address grad, Address max, Address log_sum, int device,
                     Address stream) {
  return gpu::backward(grid(dtype, logits, inner, outer_stride, inner_stride),
                       grid(dtype, out, out_inner, out_outer_stride, out_inner_stride), vocab,
                       at<const int64_t>(labels), first, selection(num_rows, listed, num_listed, mask),
                       {temperature, softcap}, at<const float>(grad), at<const float>(max), at<const float>(log_sum),
                       {device, at<void>(stream)});
}

gpu::Chunk chunk(Address logits, int64_t num_rows, int64_t columns, int64_t stride, int64_t first, Address bias,
                 Address labels) {
  return {at<const float>(logits), num_rows, columns, stride, first, at<const float>(bias), at<const int64_t>(labels)};
}

const char* fold(Address logits, int64_t num_rows, int64_t columns, int64_t stride, int64_t first, Address bias,
                 Address labels, double temperature, double softcap, Address running_max, Address running_sum,
                 Address running_weighted, Address running_label, Address listed, Address logprob, Address entropy,
                 Address max, Address log_sum, int device, Address stream) {
  return gpu::fold(
      chunk(logits, num_rows, columns, stride, first, bias, labels), {temperature, softcap},
      {at<float>(running_max), at<float>(running_sum), at<float>(running_weighted), at<float>(running_label)},
      {at<float>(logprob), at<float>(entropy), at<float>(max), at<float>(log_sum)}, at<const int64_t>(listed),
      {device, at<void>(stream)});
}

const char* chunk_gradient(Address logits, int64_t num_rows, int64_t columns, int64_t stride, int64_t first,
                           Address bias, Address labels, int dtype, Address out, int64_t out_stride, double temperature,
                           double softcap, Address grad, Address max, Address log_sum, int device, Address stream) {
  return gpu::chunk_gradient(chunk(logits, num_rows, columns, stride, first, bias, labels), at<void>(out),
                             static_cast<Dtype>(dtype), out_stride, {temperature, softcap}, at<const float>(grad),
                             at<const float>(max), at<const float>(log_sum), {device, at<void>(stream)});
}

}  // namespace

void bind_cuda(nb::module_& m) {
  // A launch can wait for room in the queue: without the GIL.
  using NoGil = nb::call_guard<nb::gil_scoped_release>;
  m.def("cuda_forward", forward, NoGil());
  m.def("cuda_partials", partials, NoGil());
  m.def("cuda_backward", backward, NoGil());
  m.def("cuda_fold", fold, NoGil());
  m.def("cuda_chunk_gradient", chunk_gradient, NoGil());
}
