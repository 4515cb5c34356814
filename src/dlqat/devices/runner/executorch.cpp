// SPDX-License-Identifier: Apache-2.0
// A device without Python: ExecuTorch behind the messages of wire.hpp, as ../worker.py with ../host_executorch.py is.
//
// One process, one program, one cache. A wrong request is answered with {"error": one line}; a runtime that aborts ends
// the process, and the driver says so. Built by ../setup/qemu-executorch.sh for an emulated ARM64 Linux, and with
// CMakeLists.txt and the NDK for Android.

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>

#include "wire.hpp"

#ifdef __linux__
#include <sys/auxv.h>
#include <sys/prctl.h>

#include <csignal>
#endif

#ifndef DLQAT_EXECUTORCH
#define DLQAT_EXECUTORCH "of unknown version"
#endif

// Its header is not in the wheel of ExecuTorch.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using dlqat::Answer, dlqat::Array, dlqat::Json, dlqat::Message, dlqat::quoted;
using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::runtime::EValue, executorch::runtime::Error, executorch::runtime::Program;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] void fail(const std::string& what, Error error) {
  throw std::runtime_error("executorch does not " + what + ": " + executorch::runtime::to_string(error));
}

ScalarType scalar_type(const std::string& dtype) {
  if (dtype == "float32") return ScalarType::Float;
  if (dtype == "int64") return ScalarType::Long;
  throw std::runtime_error("tensors of " + dtype + " are no inputs of our programs");
}

// The first output of a method as float32.
Answer::Rows run(Module& module, const std::string& method, const std::vector<Array>& inputs, const std::string& name) {
  std::vector<executorch::extension::TensorPtr> tensors;  // alive as long as the call
  std::vector<EValue> values;
  for (const Array& one : inputs) {
    std::vector<executorch::aten::SizesType> sizes(one.shape.begin(), one.shape.end());
    auto* data = const_cast<uint8_t*>(one.data);
    tensors.push_back(executorch::extension::from_blob(data, std::move(sizes), scalar_type(one.dtype)));
    values.emplace_back(*tensors.back());
  }
  auto found = module.execute(method, values);
  if (!found.ok()) fail("run it", found.error());
  const auto& tensor = found->at(0).toTensor();
  const float* data = tensor.const_data_ptr<float>();
  return {name, {tensor.sizes().begin(), tensor.sizes().end()}, {data, data + tensor.numel()}};
}

class Runner {
 public:
  Answer answer(const Message& message) {
    const std::string& op = message.header.at("op").text;
    Answer found;
    if (op == "open") open(message);
    else if (op == "logits") found = logits(message.array("token_ids"));
    else if (op == "reset") length_ = 0;
    else if (op == "truncate") length_ = std::min(length_, static_cast<int64_t>(message.header.at("length").number));
    else if (op == "facts") found.members = "\"facts\":" + facts();
    else if (op == "evaluate") return evaluate(message);
    else throw std::runtime_error("this runner does not know " + op);
    if (module_) found.members += (found.members.empty() ? "" : ",") + ("\"timings\":" + timings());
    return found;
  }

 private:
  std::unique_ptr<Module> module_;
  std::string method_;
  int64_t length_ = 0, longest_ = 1, context_ = 0, vocabulary_ = 0;
  int threads_ = 1;
  double load_seconds_ = 0, seconds_[2] = {0, 0};  // prefill, decode
  int64_t tokens_[2] = {0, 0};

  void threads(const Json& setting) {
    threads_ = static_cast<int>(setting.at("threads").number);
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(threads_);
  }

  void open(const Message& message) {
    const Json& setting = message.header.at("setting");
    double start = now();
    threads(setting);
    module_ = std::make_unique<Module>(message.header.at("program").text, Module::LoadMode::Mmap);
    if (Error error = module_->load(Program::Verification::InternalConsistency); error != Error::Ok) {
      module_.reset();
      fail("load it", error);
    }
    auto names = module_->method_names();
    method_ = names.ok() && names->count("score") && !setting.at("generate").number ? "score" : "forward";
    if (Error error = module_->load_method(method_); error != Error::Ok) fail("load " + method_, error);
    load_seconds_ = now() - start;
    longest_ = module_->method_meta(method_)->input_tensor_meta(0)->sizes()[1];
    auto first = [&](const char* name) { return numbers(name).empty() ? 0 : numbers(name)[0]; };
    context_ = first("get_max_context_len");
    vocabulary_ = first("get_vocab_size");
    length_ = 0;
  }

  Answer logits(const Array& ids) {
    if (!module_) throw std::runtime_error("no program is open");
    if (ids.dtype != "int64") throw std::runtime_error("token ids are int64");
    const auto* tokens = reinterpret_cast<const int64_t*>(ids.data);
    int64_t count = static_cast<int64_t>(ids.bytes / sizeof *tokens);
    for (int64_t i = 0; i < count; ++i)
      if (vocabulary_ && tokens[i] >= vocabulary_)
        throw std::runtime_error("token " + std::to_string(tokens[i]) + " is not in the vocabulary of " +
                                 std::to_string(vocabulary_));
    if (context_ && length_ + count > context_)
      throw std::runtime_error(std::to_string(length_ + count) + " tokens are more than its context of " +
                               std::to_string(context_));
    Answer::Rows all{"logits", {0, 0}, {}};
    for (int64_t at = 0; at < count; at += longest_) {
      int64_t step = std::min(longest_, count - at), position = length_;
      double start = now();
      Array given{"tokens", "int64", {1, step}, reinterpret_cast<const uint8_t*>(tokens + at)};
      Array where{"position", "int64", {1}, reinterpret_cast<const uint8_t*>(&position)};
      Answer::Rows rows = run(*module_, method_, {given, where}, "logits");
      tokens_[step == 1] += step;
      seconds_[step == 1] += now() - start;
      length_ += step;
      if (method_ != "score") all.values.clear();  // the last row only, as apps get it
      all.values.insert(all.values.end(), rows.values.begin(), rows.values.end());
      all.shape[1] = rows.shape.back();
    }
    all.shape[0] = static_cast<int64_t>(all.values.size()) / std::max<int64_t>(all.shape[1], 1);
    return {"", {all}};
  }

  // Small programs, each with several inputs: the first output for each.
  Answer evaluate(const Message& message) {
    threads(message.header.at("setting"));
    const Array& content = message.array("program");
    size_t room = (content.bytes + 4095) / 4096 * 4096;
    std::unique_ptr<void, decltype(&std::free)> aligned(std::aligned_alloc(4096, room), &std::free);
    std::memcpy(aligned.get(), content.data, content.bytes);
    Module module(std::make_unique<executorch::extension::BufferDataLoader>(aligned.get(), content.bytes));
    if (Error error = module.load(Program::Verification::InternalConsistency); error != Error::Ok) fail("load it", error);
    Answer found;
    for (int i = 0; i < static_cast<int>(message.header.at("batches").number); ++i) {
      std::string prefix = std::to_string(i) + "/";
      std::vector<Array> inputs;
      for (const Array& one : message.arrays)
        if (one.name.compare(0, prefix.size(), prefix) == 0) inputs.push_back(one);
      found.arrays.push_back(run(module, "forward", inputs, std::to_string(i)));
    }
    return found;
  }

  // The values of a metadata method; none if there is no such method.
  std::vector<int64_t> numbers(const std::string& method) {
    std::vector<int64_t> found;
    auto names = module_->method_names();
    if (!names.ok() || !names->count(method)) return found;
    auto values = module_->execute(method);
    if (!values.ok()) fail("run " + method, values.error());
    for (const EValue& value : *values) found.push_back(value.toInt());
    return found;
  }

  std::string timings() const {
    std::ostringstream out;
    out << "{\"load_seconds\":" << load_seconds_ << ",\"prefill_tokens\":" << tokens_[0] << ",\"prefill_seconds\":"
        << seconds_[0] << ",\"decode_tokens\":" << tokens_[1] << ",\"decode_seconds\":" << seconds_[1] << "}";
    return out.str();
  }

  std::string facts() {
    if (!module_) throw std::runtime_error("no program is open");
    utsname system{};
    uname(&system);
    std::string eos, features;
    for (int64_t id : numbers("get_eos_ids")) eos += (eos.empty() ? "" : ",") + std::to_string(id);
    for (const std::string& one : cpu_features()) features += (features.empty() ? "" : ",") + quoted(one);
    return "{\"machine\":" + quoted(system.machine) + ",\"system\":" + quoted(system.sysname) + ",\"cpu_features\":[" +
           features + "],\"runtime\":\"executorch " DLQAT_EXECUTORCH "\",\"method\":" + quoted(method_) +
           ",\"eos\":[" + eos + "],\"threads\":" + std::to_string(threads_) + "}";
  }

  // Those that change the kernels of a quantized multiplication: asked of the kernel, where there is a way to ask.
  static std::set<std::string> cpu_features() {
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
};

}  // namespace

int main() try {
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // it does not outlive its driver
#endif
  dlqat::Wire wire;
  Runner runner;
  while (std::optional<Message> message = wire.read()) {
    Answer answer;
    try {
      answer = runner.answer(*message);
    } catch (const std::exception& error) {
      answer = {"\"error\":" + quoted(error.what()), {}};
    }
    wire.write(answer);
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
