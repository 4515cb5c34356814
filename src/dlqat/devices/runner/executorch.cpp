// SPDX-License-Identifier: Apache-2.0
// A device without Python: ExecuTorch behind the messages of wire.hpp, as ../worker.py with ../host/executorch.py is.
//
// One process, one program, one cache. build-executorch.sh builds it for Linux, ../setup/qemu-executorch.sh for an
// emulated ARM64 Linux; docs/devices.md says what Android needs.

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/interface.h>

#include <algorithm>
#include <memory>

#include "runner.hpp"

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

using dlqat::Answer, dlqat::Array, dlqat::check_tokens, dlqat::Json, dlqat::Message, dlqat::now, dlqat::quoted;
using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::runtime::EValue, executorch::runtime::Error, executorch::runtime::Program;

[[noreturn]] void fail(const std::string& what, Error error) {
  throw std::runtime_error("executorch does not " + what + ": " + executorch::runtime::to_string(error));
}

ScalarType scalar_type(const std::string& dtype) {
  if (dtype == "float32") return ScalarType::Float;
  if (dtype == "int64") return ScalarType::Long;
  throw std::runtime_error("tensors of " + dtype + " are no inputs of our programs");
}

// An option of the setting by its name; `otherwise` where it is not among them.
std::string option(const Json& setting, const std::string& name, const std::string& otherwise) {
  for (const Json& one : setting.at("options").list)
    if (one.list.at(0).text == name) return one.list.at(1).text;
  return otherwise;
}

// XNNPACK's options as the setting has them; they hold for programs that are loaded afterwards. Others stay as built.
void configure(const Json& setting) {
  executorch::runtime::BackendOptions<2> options;
  if (std::string cache = option(setting, "weight_cache_enabled", ""); !cache.empty())
    options.set_option("weight_cache_enabled", cache == "1");
  if (std::string mode = option(setting, "workspace_sharing_mode", ""); !mode.empty())
    options.set_option("workspace_sharing_mode", std::stoi(mode));
  if (options.view().size() == 0) return;
  if (Error error = executorch::runtime::set_option("XnnpackBackend", options.view()); error != Error::Ok)
    fail("take the options of XNNPACK", error);
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
    if (module_) found.members += (found.members.empty() ? "" : ",") + ("\"timings\":" + timings_.json());
    return found;
  }

 private:
  std::unique_ptr<Module> module_;
  std::string method_;
  int64_t length_ = 0, longest_ = 1, context_ = 0, vocabulary_ = 0;
  int threads_ = 1;
  dlqat::Timings timings_;

  void threads(const Json& setting) {
    threads_ = static_cast<int>(setting.at("threads").number);
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(threads_);
  }

  void open(const Message& message) {
    const Json& setting = message.header.at("setting");
    double start = now();
    threads(setting);
    configure(setting);
    bool file = option(setting, "load_mode", "mmap") == "file";
    module_ = std::make_unique<Module>(message.header.at("program").text,
                                       file ? Module::LoadMode::File : Module::LoadMode::Mmap);
    if (Error error = module_->load(Program::Verification::InternalConsistency); error != Error::Ok) {
      module_.reset();
      fail("load it", error);
    }
    auto names = module_->method_names();
    method_ = names.ok() && names->count("score") && !setting.at("generate").number ? "score" : "forward";
    if (Error error = module_->load_method(method_); error != Error::Ok) fail("load " + method_, error);
    timings_.load_seconds = now() - start;
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
    check_tokens(tokens, count, vocabulary_);
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
      timings_.count(step, now() - start);
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
    for (int i = 0; i < static_cast<int>(message.header.at("batches").number); ++i)
      found.arrays.push_back(run(module, "forward", message.batch(i), std::to_string(i)));
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

  std::string facts() {
    if (!module_) throw std::runtime_error("no program is open");
    std::string eos;
    for (int64_t id : numbers("get_eos_ids")) eos += (eos.empty() ? "" : ",") + std::to_string(id);
    return "{" + dlqat::machine_facts() + ",\"runtime\":\"executorch " DLQAT_EXECUTORCH "\",\"method\":" +
           quoted(method_) + ",\"eos\":[" + eos + "],\"threads\":" + std::to_string(threads_) + "}";
  }
};

}  // namespace

int main() { return dlqat::serve<Runner>(); }
