#include "pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace rl_think {
namespace {

class Pool {
 public:
  const pid_t owner = getpid();
  std::mutex turn;  // held by the one caller whose tasks are run

  void run(int64_t num_tasks, int helpers, const Task& task) {
    {
      std::lock_guard lock(state_);
      helpers = start(helpers);
      task_ = &task;
      num_tasks_ = num_tasks;
      next_ = 0;
      wanted_ = running_ = helpers;
      ++round_;
    }
    work_.notify_all();
    drain(0);
    std::unique_lock lock(state_);
    done_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  // The number of helpers that there are: a system may refuse further threads.
  int start(int helpers) {
    try {
      for (; started_ < helpers; ++started_) {
        std::thread([this, index = started_ + 1, seen = round_] { serve(index, seen); }).detach();
      }
    } catch (const std::system_error&) {
    }
    return std::min(helpers, started_);
  }

  void serve(int index, int64_t seen) {
    for (;;) {
      {
        std::unique_lock lock(state_);
        work_.wait(lock, [&] { return round_ != seen; });
        seen = round_;
        if (index > wanted_) continue;
      }
      drain(index);
      std::lock_guard lock(state_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  void drain(int worker) {
    for (int64_t i; (i = next_.fetch_add(1)) < num_tasks_;) (*task_)(i, worker);
  }

  std::mutex state_;
  std::condition_variable work_, done_;
  const Task* task_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t num_tasks_ = 0, round_ = 0;
  int wanted_ = 0, running_ = 0, started_ = 0;
};

// Never destroyed: at the end of the process its workers still wait on it. A fork leaves the threads behind and may
// copy a locked mutex, so a child makes a pool of its own.
std::atomic<Pool*> shared{nullptr};

Pool& pool() {
  Pool* found = shared.load();
  while (!found || found->owner != getpid()) {
    Pool* fresh = new Pool;
    if (shared.compare_exchange_strong(found, fresh)) return *fresh;
    delete fresh;
  }
  return *found;
}

}  // namespace

void parallel_for(int64_t num_tasks, int num_threads, const Task& task) {
  const int helpers = static_cast<int>(std::min<int64_t>(num_threads, num_tasks)) - 1;
  if (helpers > 0) {
    Pool& threads = pool();
    if (std::unique_lock turn(threads.turn, std::try_to_lock); turn.owns_lock()) {
      return threads.run(num_tasks, helpers, task);
    }
  }
  for (int64_t i = 0; i < num_tasks; ++i) task(i, 0);
}

}  // namespace rl_think
