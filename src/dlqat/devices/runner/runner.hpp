// SPDX-License-Identifier: Apache-2.0
// What the runners have in common: clocks, facts about the machine, and the loop that answers messages.

#pragma once

#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <set>
#include <sstream>

#include "wire.hpp"

#ifdef __linux__
#include <sys/auxv.h>
#include <sys/prctl.h>

#include <csignal>
#endif

namespace dlqat {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Timings of ../device.py.
struct Timings {
  double load_seconds = 0, seconds[2] = {0, 0};  // prefill, decode
  int64_t tokens[2] = {0, 0};

  // One call: one token is decoding, more are prefill.
  void count(int64_t called_with, double took) {
    tokens[called_with == 1] += called_with;
    seconds[called_with == 1] += took;
  }

  std::string json() const {
    std::ostringstream out;
    out << "{\"load_seconds\":" << load_seconds << ",\"prefill_tokens\":" << tokens[0] << ",\"prefill_seconds\":"
        << seconds[0] << ",\"decode_tokens\":" << tokens[1] << ",\"decode_seconds\":" << seconds[1] << "}";
    return out.str();
  }
};

// Throws for a token that the model has no row for: a runtime may read past its table without a word.
inline void check_tokens(const int64_t* ids, int64_t count, int64_t vocabulary) {
  for (int64_t i = 0; i < count && vocabulary > 0; ++i)
    if (ids[i] < 0 || ids[i] >= vocabulary)
      throw std::runtime_error("token " + std::to_string(ids[i]) + " is not in the vocabulary of " +
                               std::to_string(vocabulary));
}

// Text on one line, as long as a message may be.
inline std::string line(const std::string& text) {
  std::string out;
  std::istringstream words(text);
  for (std::string word; words >> word;) out += (out.empty() ? "" : " ") + word;
  return out.substr(0, 400);
}

// A JSON list of strings.
template <typename Strings>
std::string quoted_list(const Strings& texts) {
  std::string out;
  for (const std::string& one : texts) out += (out.empty() ? "" : ",") + quoted(one);
  return "[" + out + "]";
}

// CPU features that change the kernels of a quantized multiplication: asked of the kernel, where there is a way to ask.
inline std::set<std::string> cpu_features() {
  std::set<std::string> found;
#if defined(__aarch64__) && defined(__linux__)
  unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);  // bits of the kernel's asm/hwcap.h
  if (first >> 10 & 1) found.insert("asimdhp");
  if (first >> 20 & 1) found.insert("asimddp");
  if (first >> 22 & 1) found.insert("sve");
  if (second >> 13 & 1) found.insert("i8mm");
  if (second >> 14 & 1) found.insert("bf16");
  if (second >> 23 & 1) found.insert("sme");
#else
  const std::set<std::string> telling = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"};
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    std::istringstream words(line.substr(std::min(line.find(':'), line.size())));
    for (std::string word; words >> word;)
      if (telling.count(word)) found.insert(word);
  }
#endif
  return found;
}

// JSON members without braces.
inline std::string machine_facts() {
  utsname system{};
  uname(&system);
  return "\"machine\":" + quoted(system.machine) + ",\"system\":" + quoted(system.sysname) +
         ",\"cpu_features\":" + quoted_list(cpu_features());
}

// Answer until the driver closes the stream. A wrong request is answered with {"error": one line}; a runtime that aborts
// ends the process, and the driver says so.
template <typename Runner>
int serve() try {
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // it does not outlive its driver
#endif
  Wire wire;
  Runner runner;
  while (std::optional<Message> message = wire.read()) {
    Answer answer;
    try {
      answer = runner.answer(*message);
    } catch (const std::exception& error) {
      answer = {"\"error\":" + quoted(line(error.what())), {}};
    }
    wire.write(answer);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

}  // namespace dlqat
