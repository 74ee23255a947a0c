// The border to Python: integers in, nothing allocated, nothing checked twice. Every call releases the GIL.
#include <nanobind/nanobind.h>

#include "border.h"
#include "cpu/linear.h"
#include "cpu/rows.h"
#include "cpu/table.h"

namespace nb = nanobind;
using namespace rl_think;

#ifdef RL_THINK_CUDA
void bind_cuda(nb::module_& m);
#endif

namespace {

int64_t forward(int dtype, Address logits, int64_t inner, int64_t outer_stride, int64_t inner_stride, int64_t vocab,
                Address labels, int64_t num_rows, Address listed, int64_t num_listed, Address mask,
                float inv_temperature, float softcap, Address logprob, Address entropy, Address max, Address log_sum,
                int threads) {
  const Selection rows = selection(num_rows, listed, num_listed, mask);
  const int64_t bad = first_bad_row(rows, at<const int64_t>(labels), vocab);
  if (bad != -1) return bad;
  rows_forward(grid(dtype, logits, inner, outer_stride, inner_stride), vocab, at<const int64_t>(labels), rows,
               {inv_temperature, softcap}, {at<float>(logprob), at<float>(entropy), at<float>(max), at<float>(log_sum)},
               threads);
  return bad;
}

int64_t partials(int dtype, Address logits, int64_t inner, int64_t outer_stride, int64_t inner_stride, int64_t vocab,
                 Address labels, int64_t first, int64_t num_rows, Address listed, int64_t num_listed, Address mask,
                 float inv_temperature, float softcap, Address max, Address sum, Address label, int threads) {
  const Selection rows = selection(num_rows, listed, num_listed, mask);
  const int64_t bad = first_bad_row(rows, nullptr, vocab);  // labels may be another shard's
  if (bad != -1) return bad;
  rows_partials(grid(dtype, logits, inner, outer_stride, inner_stride), vocab, at<const int64_t>(labels), first, rows,
                {inv_temperature, softcap}, {at<float>(max), at<float>(sum), at<float>(label)}, threads);
  return bad;
}

void backward(int dtype, Address logits, int64_t inner, int64_t outer_stride, int64_t inner_stride, Address out,
              int64_t out_inner, int64_t out_outer_stride, int64_t out_inner_stride, int64_t vocab, Address labels,
              int64_t first, int64_t num_rows, Address listed, int64_t num_listed, Address mask, float inv_temperature,
              float softcap, Address grad, Address max, Address log_sum, bool clear, int threads) {
  rows_backward(grid(dtype, logits, inner, outer_stride, inner_stride),
                grid(dtype, out, out_inner, out_outer_stride, out_inner_stride), vocab, at<const int64_t>(labels),
                first, selection(num_rows, listed, num_listed, mask), {inv_temperature, softcap}, at<const float>(grad),
                at<const float>(max), at<const float>(log_sum), clear, threads);
}

Head head(int dtype, Address hidden, int64_t inner, int64_t outer_stride, int64_t inner_stride, int64_t depth,
          Address weight, int64_t weight_stride, int64_t vocab, Address bias, float inv_temperature, float softcap) {
  return {grid(dtype, hidden, inner, outer_stride, inner_stride),
          at<const char>(weight),
          depth,
          vocab,
          weight_stride,
          at<const char>(bias),
          {inv_temperature, softcap}};
}

int64_t linear_forward_at(int dtype, Address hidden, int64_t inner, int64_t outer_stride, int64_t inner_stride,
                          int64_t depth, Address weight, int64_t weight_stride, int64_t vocab, Address bias,
                          Address labels, int64_t num_rows, Address listed, int64_t num_listed, Address mask,
                          float inv_temperature, float softcap, Address logprob, Address entropy, Address max,
                          Address log_sum, int threads) {
  const Selection rows = selection(num_rows, listed, num_listed, mask);
  const int64_t bad = first_bad_row(rows, at<const int64_t>(labels), vocab);
  if (bad != -1) return bad;
  linear_forward(head(dtype, hidden, inner, outer_stride, inner_stride, depth, weight, weight_stride, vocab, bias,
                      inv_temperature, softcap),
                 at<const int64_t>(labels), rows,
                 {at<float>(logprob), at<float>(entropy), at<float>(max), at<float>(log_sum)}, threads);
  return bad;
}

void linear_backward_at(int dtype, Address hidden, int64_t inner, int64_t outer_stride, int64_t inner_stride,
                        int64_t depth, Address weight, int64_t weight_stride, int64_t vocab, Address bias,
                        Address labels, int64_t num_rows, Address listed, int64_t num_listed, Address mask,
                        float inv_temperature, float softcap, Address grad, Address max, Address log_sum,
                        Address grad_hidden, Address grad_weight, Address grad_bias, int threads) {
  linear_backward(head(dtype, hidden, inner, outer_stride, inner_stride, depth, weight, weight_stride, vocab, bias,
                       inv_temperature, softcap),
                  at<const int64_t>(labels), selection(num_rows, listed, num_listed, mask), at<const float>(grad),
                  at<const float>(max), at<const float>(log_sum), at<char>(grad_hidden), at<char>(grad_weight),
                  at<char>(grad_bias), threads);
}

}  // namespace

NB_MODULE(_native, m) {
  using NoGil = nb::call_guard<nb::gil_scoped_release>;
  m.doc() = "Masked log-probability, compiled; rl_think_ext.kernels checks the arguments and calls it";
  m.def("isa", [] { return kernels().name; });
  m.def("use_isa", [](const char* name) { return use(name); });
  m.def("forward", forward, NoGil());
  m.def("partials", partials, NoGil());
  m.def("backward", backward, NoGil());
  m.def("linear_forward", linear_forward_at, NoGil());
  m.def("linear_backward", linear_backward_at, NoGil());
#ifdef RL_THINK_CUDA
  m.attr("has_cuda") = true;
  bind_cuda(m);
#else
  m.attr("has_cuda") = false;
#endif
}
