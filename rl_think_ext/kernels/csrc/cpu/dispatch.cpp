// Which instruction set: the best that the machine has, unless one is named.
#include <cstdlib>
#include <cstring>

#include "table.h"

namespace rl_think {
namespace {

struct Choice {
  const char* name;
  const Kernels* (*table)();
  bool (*runs_here)();
};

#ifdef RL_THINK_X86
bool has_avx2() {
  // Clang learned to ask for f16c late; no machine with the other two is without it.
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_bf16_unit() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

const Kernels* avx512_with_bf16_unit() {
  static const Kernels table = [] {
    Kernels with_unit = *avx512_kernels();
    with_unit.name = "avx512_bf16";
    add_bf16_unit(with_unit);
    return with_unit;
  }();
  return &table;
}
#endif

bool always() { return true; }

const Choice kChoices[] = {
#ifdef RL_THINK_X86
    {"avx512_bf16", avx512_with_bf16_unit, has_bf16_unit},
    {"avx512", avx512_kernels, has_avx512},
    {"avx2", avx2_kernels, has_avx2},
#endif
    {"scalar", scalar_kernels, always},
};

const Kernels* find(const char* name) {
#ifdef RL_THINK_X86
  __builtin_cpu_init();
#endif
  for (const Choice& choice : kChoices) {
    if ((!name || !std::strcmp(name, choice.name)) && choice.runs_here()) return choice.table();
  }
  return nullptr;
}

const Kernels*& current() {
  // A name that is unknown here was refused, aloud, by the Python side.
  static const Kernels* chosen = find(std::getenv("RL_THINK_ISA")) ? find(std::getenv("RL_THINK_ISA")) : find(nullptr);
  return chosen;
}

}  // namespace

const Kernels& kernels() { return *current(); }

bool use(const char* name) {
  const Kernels* found = find(name);
  if (found) current() = found;
  return found != nullptr;
}

}  // namespace rl_think
