#include "linear.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "../pool.h"
#include "numbers.h"
#include "rows.h"

namespace rl_think {
namespace {

constexpr int64_t kRowBlock = 512;   // rows that are packed together
constexpr int64_t kSpanTiles = 128;  // tiles of the vocabulary that one task folds
constexpr int64_t kSlabTiles = 36;   // tiles whose gradients are held together

int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

using Floats = std::vector<float>;

// The hidden states of up to kRowBlock wanted rows, as panels: [panels][steps][panel] numbers, or pairs of bf16.
class Panels {
 public:
  Panels(const Head& head, const Selected& rows, int64_t begin, int64_t count, int num_threads)
      : begin(begin),
        count(count),
        width(kernels().panel),
        pairs(head.hidden.dtype == Dtype::bf16 && kernels().multiply_bf16 != nullptr),
        steps(pairs ? (head.depth + 1) / 2 : head.depth),
        packed_(rounded_up(count, width) * steps) {
    std::vector<Floats> wide(num_threads, Floats(head.depth));
    parallel_for(panels(), num_threads, [&](int64_t panel, int worker) { pack(head, rows, panel, wide[worker]); });
  }

  const int64_t begin, count, width;
  const bool pairs;
  const int64_t steps;

  int64_t panels() const { return (count + width - 1) / width; }
  int64_t lanes(int64_t panel) const { return std::min(width, count - panel * width); }
  const float* at(int64_t panel) const { return packed_.data() + panel * steps * width; }

 private:
  void pack(const Head& head, const Selected& rows, int64_t panel, Floats& wide) {
    float* out = packed_.data() + panel * steps * width;
    for (int64_t lane = 0; lane < lanes(panel); ++lane) {
      const char* x = head.hidden.row(rows[begin + panel * width + lane]);
      if (pairs) {
        for (int64_t k = 0; k < steps; ++k) {
          char* pair = reinterpret_cast<char*>(out + k * width + lane);
          std::memcpy(pair, x + 4 * k, std::min<int64_t>(4, (head.depth - 2 * k) * 2));
        }
      } else {
        kernels().widen(head.hidden.dtype, x, wide.data(), head.depth);
        for (int64_t k = 0; k < steps; ++k) out[k * width + lane] = wide[k];
      }
    }
  }

  Floats packed_;
};

// Scratch memory of one thread.
struct Worker {
  Floats products, weight, max, sum, carry, weighted;

  Worker(const Head& head, int64_t block)
      : products(kernels().tile_rows * kernels().panel),
        weight(kernels().tile_rows * (head.depth + 1)),
        max(block),
        sum(block),
        carry(block),
        weighted(block) {}
};

// Rows of the weight as the multiplication reads them.
struct Tile {
  const char* at;
  int64_t row_bytes;
  const char* next;  // the tile behind it, where it lies
  int64_t next_bytes;
};

Tile tile_of(const Head& head, int64_t v0, int64_t count, bool pairs, float* scratch) {
  const int64_t item = head.hidden.item(), stride = head.weight_stride * item;
  const char *weight = head.weight + v0 * stride, *next = weight + count * stride;
  const int64_t next_bytes = kernels().tile_rows * stride;
  const bool as_it_lies = pairs ? head.depth % 2 == 0 : item == 4;
  if (as_it_lies && count == kernels().tile_rows) return {weight, stride, next, next_bytes};
  const int64_t row = pairs ? (head.depth + 1) / 2 : head.depth;
  std::fill_n(scratch, kernels().tile_rows * row, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    if (pairs) {
      std::memcpy(scratch + i * row, weight + i * stride, head.depth * 2);
    } else {
      kernels().widen(head.hidden.dtype, weight + i * stride, scratch + i * row, head.depth);
    }
  }
  return {reinterpret_cast<const char*>(scratch), row * 4, next, next_bytes};
}

// x for `count` columns from v0 on and the lanes of a panel, into products [count][panel].
void logits_of(const Head& head, const Panels& hidden, int64_t panel, const Tile& tile, int64_t v0, int64_t count,
               float* products) {
  const Kernels& table = kernels();
  const bool narrow = hidden.lanes(panel) <= hidden.width / 2;
  const auto wide_one = hidden.pairs ? table.multiply_bf16 : table.multiply;
  const auto narrow_one = hidden.pairs ? table.multiply_bf16_narrow : table.multiply_narrow;
  const char* lanes = reinterpret_cast<const char*>(hidden.at(panel));
  Product product = {hidden.steps, tile.at, tile.row_bytes, 4, lanes, hidden.width * 4, products};
  product.ahead = panel == 0 ? tile.next : tile.at;
  product.ahead_step = panel == 0 ? tile.next_bytes / hidden.steps : 0;
  (narrow ? narrow_one : wide_one)(product);
  if (!head.bias) return;
  for (int64_t i = 0; i < count; ++i) {
    const float bias = read(head.hidden.dtype, head.bias + (v0 + i) * head.hidden.item());
    for (int64_t lane = 0; lane < hidden.width; ++lane) products[i * hidden.width + lane] += bias;
  }
}

int64_t lanes_in_use(const Panels& hidden, int64_t panel) {
  return hidden.lanes(panel) <= hidden.width / 2 ? hidden.width / 2 : hidden.width;
}

// One task of the forward: a span of the vocabulary, for every row of the block.
void fold_span(const Head& head, const Selected& rows, const int64_t* labels, const Panels& hidden, int64_t v_begin,
               int64_t v_end, bool entropy, Worker& w, RowState* states, float* label_logits) {
  const int64_t width = hidden.width, tile_rows = kernels().tile_rows;
  std::fill(w.max.begin(), w.max.end(), -FLT_MAX);
  for (Floats* sums : {&w.sum, &w.carry, &w.weighted}) std::fill(sums->begin(), sums->end(), 0.0f);
  for (int64_t v0 = v_begin; v0 < v_end; v0 += tile_rows) {
    const int64_t count = std::min(tile_rows, v_end - v0);
    const Tile tile = tile_of(head, v0, count, hidden.pairs, w.weight.data());
    for (int64_t panel = 0; panel < hidden.panels(); ++panel) {
      const int64_t p = panel * width;
      logits_of(head, hidden, panel, tile, v0, count, w.products.data());
      kernels().fold(w.products.data(), count, lanes_in_use(hidden, panel), head.scaling, entropy,
                     {&w.max[p], &w.sum[p], &w.carry[p], &w.weighted[p]});
      for (int64_t lane = 0; lane < hidden.lanes(panel); ++lane) {
        const int64_t j = labels[rows[hidden.begin + p + lane]] - v0;
        if (j >= 0 && j < count) label_logits[p + lane] = w.products[j * width + lane];
      }
    }
  }
  for (int64_t i = 0; i < hidden.count; ++i) {
    const double sum = static_cast<double>(w.sum[i]) + w.carry[i];
    // Every logit of the span is -inf: one that is -FLT_MAX would have brought a term of 1.
    const bool nothing = w.max[i] == -FLT_MAX && sum < 0.5;
    states[i] =
        nothing ? RowState{-INFINITY, 0, 0} : RowState{w.max[i], sum, static_cast<double>(w.weighted[i]) * kLn2};
  }
}

// The backward goes through the vocabulary in slabs: dz of a slab, then what it adds to each gradient. A slab of the
// weight's gradient is complete at once, so it needs no float32 copy of the whole; that of the hidden states is summed
// over slabs.
class Backward {
 public:
  Backward(const Head& head, const Selected& rows, const int64_t* labels, int num_threads)
      : head_(head),
        rows_(rows),
        labels_(labels),
        threads_(num_threads),
        packed_(head, rows, 0, rows.count(), num_threads),
        tile_rows_(kernels().tile_rows),
        pitch_(rounded_up(rows.count(), packed_.width) + tile_rows_),
        depth_(rounded_up(head.depth, packed_.width)),
        dz_(kSlabTiles * tile_rows_ * pitch_),
        grad_(pitch_),
        max_(pitch_),
        log_sum_(pitch_),
        workers_(num_threads, Worker(head, 0)) {}

  void run(const float* grad, const float* max, const float* log_sum, char* grad_hidden, char* grad_weight,
           char* grad_bias) {
    for (int64_t i = 0; i < rows_.count(); ++i) {
      grad_[i] = grad[rows_[i]];
      max_[i] = max[rows_[i]];
      log_sum_[i] = log_sum[rows_[i]];
    }
    if (grad_weight) keep_hidden();
    if (grad_hidden) {
      weight_.resize(kSlabTiles * tile_rows_ * depth_);
      hidden_sum_.resize((rows_.count() + tile_rows_) * depth_);
    }
    for (int64_t v0 = 0; v0 < head_.vocab; v0 += kSlabTiles * tile_rows_) {
      const int64_t count = std::min(kSlabTiles * tile_rows_, head_.vocab - v0);
      compute_dz(v0, count);
      if (grad_weight) weight_gradient(v0, count, grad_weight);
      if (grad_bias) bias_gradient(v0, count, grad_bias);
      if (grad_hidden) add_hidden_gradient(v0, count);
    }
    for (int64_t i = 0; grad_hidden && i < rows_.count(); ++i) {
      char* out = grad_hidden + rows_[i] * head_.depth * head_.hidden.item();
      kernels().narrow(head_.hidden.dtype, &hidden_sum_[i * depth_], out, head_.depth);
    }
  }

 private:
  int64_t tiles(int64_t count) const { return (count + tile_rows_ - 1) / tile_rows_; }

  // The hidden states by rows, padded to whole panels: what the weight's gradient is made of.
  void keep_hidden() {
    hidden_.resize(rows_.count() * depth_);
    parallel_for(rows_.count(), threads_, [&](int64_t i, int) {
      kernels().widen(head_.hidden.dtype, head_.hidden.row(rows_[i]), &hidden_[i * depth_], head_.depth);
    });
  }

  void compute_dz(int64_t v0, int64_t count) {
    const int64_t groups = (packed_.panels() + kGroup - 1) / kGroup;
    // Panels that fit into the cache together meet every tile before the next ones do.
    parallel_for(groups * tiles(count), threads_, [&](int64_t task, int worker) {
      const int64_t begin = task / tiles(count) * kGroup, first = task % tiles(count) * tile_rows_;
      const int64_t size = std::min(tile_rows_, count - first);
      Worker& w = workers_[worker];
      const Tile tile = tile_of(head_, v0 + first, size, packed_.pairs, w.weight.data());
      for (int64_t panel = begin; panel < std::min(begin + kGroup, packed_.panels()); ++panel) {
        logits_of(head_, packed_, panel, tile, v0 + first, size, w.products.data());
        panel_dz(panel, v0 + first, size, w.products.data(), &dz_[first * pitch_]);
      }
    });
  }

  void panel_dz(int64_t panel, int64_t v0, int64_t count, float* products, float* dz) {
    const int64_t width = packed_.width, p = panel * width, lanes = packed_.lanes(panel);
    std::pair<int64_t, float> at_label[kMostLanes];
    int64_t found = 0;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t j = labels_[rows_[p + lane]] - v0;
      if (j < 0 || j >= count) continue;
      const float x = products[j * width + lane];
      const float value = gradient_at_label(x, grad_[p + lane], max_[p + lane], log_sum_[p + lane], head_.scaling);
      at_label[found++] = {j * pitch_ + p + lane, value};
    }
    kernels().tile_gradient(products, count, lanes_in_use(packed_, panel), head_.scaling, &grad_[p], &max_[p],
                            &log_sum_[p]);
    for (int64_t j = 0; j < count; ++j) std::copy_n(products + j * width, lanes, dz + j * pitch_ + p);
    for (int64_t i = 0; i < found; ++i) dz[at_label[i].first] = at_label[i].second;
  }

  // dz.T @ hidden, complete for these columns.
  void weight_gradient(int64_t v0, int64_t count, char* out) {
    const int64_t item = head_.hidden.item(), width = packed_.width;
    parallel_for(tiles(count), threads_, [&](int64_t tile, int worker) {
      const int64_t first = tile * tile_rows_;
      float* products = workers_[worker].products.data();
      for (int64_t d = 0; d < head_.depth; d += width) {
        kernels().multiply(
            {rows_.count(), bytes(&dz_[first * pitch_]), pitch_ * 4, 4, bytes(&hidden_[d]), depth_ * 4, products});
        for (int64_t j = first; j < std::min(first + tile_rows_, count); ++j) {
          char* target = out + ((v0 + j) * head_.depth + d) * item;
          kernels().narrow(head_.hidden.dtype, products + (j - first) * width, target,
                           std::min(width, head_.depth - d));
        }
      }
    });
  }

  void bias_gradient(int64_t v0, int64_t count, char* out) {
    parallel_for(count, threads_, [&](int64_t j, int) {
      double sum = 0;
      for (int64_t i = 0; i < rows_.count(); ++i) sum += dz_[j * pitch_ + i];
      write(head_.hidden.dtype, out + (v0 + j) * head_.hidden.item(), static_cast<float>(sum));
    });
  }

  // += dz @ weight
  void add_hidden_gradient(int64_t v0, int64_t count) {
    const int64_t item = head_.hidden.item(), width = packed_.width, row_tiles = tiles(rows_.count());
    parallel_for(count, threads_, [&](int64_t j, int) {
      const char* row = head_.weight + (v0 + j) * head_.weight_stride * item;
      kernels().widen(head_.hidden.dtype, row, &weight_[j * depth_], head_.depth);
    });
    parallel_for(row_tiles * (depth_ / width), threads_, [&](int64_t task, int worker) {
      const int64_t d = task / row_tiles * width, first = task % row_tiles * tile_rows_;
      float* products = workers_[worker].products.data();
      kernels().multiply({count, bytes(&dz_[first]), 4, pitch_ * 4, bytes(&weight_[d]), depth_ * 4, products});
      for (int64_t i = 0; i < tile_rows_; ++i) {
        float* sum = &hidden_sum_[(first + i) * depth_ + d];
        for (int64_t lane = 0; lane < width; ++lane) sum[lane] += products[i * width + lane];
      }
    });
  }

  static const char* bytes(const float* p) { return reinterpret_cast<const char*>(p); }

  static constexpr int64_t kGroup = 16, kMostLanes = 64;

  const Head& head_;
  const Selected& rows_;
  const int64_t* labels_;
  const int threads_;
  const Panels packed_;
  const int64_t tile_rows_, pitch_, depth_;
  Floats dz_, grad_, max_, log_sum_, hidden_, weight_, hidden_sum_;
  std::vector<Worker> workers_;
};

}  // namespace

void linear_forward(const Head& head, const int64_t* labels, const Selection& selection, const RowResults& out,
                    int num_threads) {
  const Selected rows(selection);
  const int64_t span = kSpanTiles * kernels().tile_rows, spans = (head.vocab + span - 1) / span;
  std::vector<Worker> workers(num_threads,
                              Worker(head, rounded_up(std::min(rows.count(), kRowBlock), kernels().panel)));
  for (int64_t begin = 0; begin < rows.count(); begin += kRowBlock) {
    const Panels hidden(head, rows, begin, std::min(kRowBlock, rows.count() - begin), num_threads);
    std::vector<RowState> states(spans * hidden.count);
    Floats label_logits(hidden.count);
    parallel_for(spans, num_threads, [&](int64_t s, int worker) {
      fold_span(head, rows, labels, hidden, s * span, std::min(head.vocab, (s + 1) * span), out.entropy,
                workers[worker], &states[s * hidden.count], label_logits.data());
    });
    for (int64_t i = 0; i < hidden.count; ++i) {
      RowState state = states[i];
      for (int64_t s = 1; s < spans; ++s) {
        state = merged(state, states[s * hidden.count + i], head.scaling.inv_temperature);
      }
      finish(state, label_logits[i], head.scaling.inv_temperature, rows[begin + i], out);
    }
  }
}

void linear_backward(const Head& head, const int64_t* labels, const Selection& selection, const float* grad,
                     const float* max, const float* log_sum, char* grad_hidden, char* grad_weight, char* grad_bias,
                     int num_threads) {
  const Selected rows(selection);
  if (rows.count() == 0) return;
  Backward(head, rows, labels, num_threads).run(grad, max, log_sum, grad_hidden, grad_weight, grad_bias);
}

}  // namespace rl_think
