// The rows that are wanted, by number; nothing is stored where all are.
#pragma once

#include <vector>

#include "../api.h"

namespace rl_think {

class Selected {
 public:
  explicit Selected(const Selection& s) : listed_(s.listed), count_(s.listed ? s.num_listed : s.num_rows) {
    if (!s.mask || s.listed) return;
    for (int64_t r = 0; r < s.num_rows; ++r) {
      if (s.mask[r]) found_.push_back(r);
    }
    listed_ = found_.data();
    count_ = static_cast<int64_t>(found_.size());
  }
  Selected(const Selected&) = delete;

  int64_t count() const { return count_; }
  int64_t operator[](int64_t i) const { return listed_ ? listed_[i] : i; }

 private:
  std::vector<int64_t> found_;
  const int64_t* listed_;
  int64_t count_;
};

}  // namespace rl_think
