// Threads that wait between calls. Tasks are taken one by one, so uneven rows balance; what a task computes never
// depends on who takes it.
#pragma once

#include <cstdint>
#include <functional>

namespace rl_think {

// task(i, worker): `worker` is below num_threads and at work on one task at a time, so it can index scratch memory. A
// task must not throw.
using Task = std::function<void(int64_t, int)>;

// Calls the task for i in [0, num_tasks) on up to num_threads threads, the caller among them. A pool that is busy
// (another Python thread computes) is not waited for: the caller works alone. After a fork the child starts threads of
// its own.
void parallel_for(int64_t num_tasks, int num_threads, const Task& task);

}  // namespace rl_think
