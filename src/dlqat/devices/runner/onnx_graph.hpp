// SPDX-License-Identifier: Apache-2.0
// onnxruntime itself: its library, a graph loaded under a setting of ../device.py, and one run of it.

#pragma once

#define ORT_API_MANUAL_INIT
#include <dlfcn.h>
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <map>

#include "onnx_level.hpp"
#include "runner.hpp"

namespace dlqat::onnx {

// The library; it stays loaded.
inline const OrtApiBase& library() {
  static const OrtApiBase* found = [] {
    void* loaded = dlopen("libonnxruntime.so", RTLD_NOW | RTLD_LOCAL);
    void* entry = loaded ? dlsym(loaded, "OrtGetApiBase") : nullptr;
    if (!entry) throw std::runtime_error(dlerror());
    return reinterpret_cast<const OrtApiBase*(ORT_API_CALL*)()>(entry)();
  }();
  return *found;
}

// A call of onnxruntime; its error in one sentence.
template <typename Call>
auto asked(const char* what, Call call) {
  try {
    return call();
  } catch (const Ort::Exception& error) {
    throw std::runtime_error(std::string("onnxruntime does not ") + what + ": " + error.what());
  }
}

inline int level(const Json& setting) { return setting.at("activations").text == "int8" ? 4 : 0; }

inline Ort::SessionOptions options(const Json& setting) {
  Ort::SessionOptions found;
  found.SetGraphOptimizationLevel(setting.at("optimize").number ? ORT_ENABLE_ALL : ORT_DISABLE_ALL);
  found.SetIntraOpNumThreads(static_cast<int>(setting.at("threads").number));
  found.SetInterOpNumThreads(1);
  found.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);  // its errors travel, once
  found.AddConfigEntry("session.intra_op.allow_spinning", "0");
  for (const Json& one : setting.at("options").list) {
    const std::string &key = one.list.at(0).text, &value = one.list.at(1).text;
    if (key == "enable_cpu_mem_arena") value == "1" ? found.EnableCpuMemArena() : found.DisableCpuMemArena();
    else if (key == "enable_mem_pattern") value == "1" ? found.EnableMemPattern() : found.DisableMemPattern();
    else if (key == "execution_mode") found.SetExecutionMode(ORT_PARALLEL), found.SetInterOpNumThreads(2);
    else found.AddConfigEntry(key.c_str(), value.c_str());
  }
  found.AddConfigEntry("session.qdq_matmulnbits_accuracy_level", std::to_string(level(setting)).c_str());
  return found;
}

inline Ort::Env& environment() {
  static Ort::Env one(ORT_LOGGING_LEVEL_FATAL, "dlqat");
  return one;
}

inline Ort::Session load(std::string_view model, const Ort::SessionOptions& chosen) {
  return asked("load it", [&] { return Ort::Session(environment(), model.data(), model.size(), chosen); });
}

inline Ort::Session load(const std::string& program, const Json& setting, Ort::SessionOptions chosen) {
  std::ifstream file(program, std::ios::binary);
  if (!file) throw std::runtime_error("there is no file " + program);
  std::string model{std::istreambuf_iterator<char>(file), {}};
  int nodes = 0;
  try {
    model = at_level(model, level(setting), &nodes);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(program + " is no ONNX model (" + error.what() + ")");
  }
  if (!nodes) return asked("load it", [&] { return Ort::Session(environment(), program.c_str(), chosen); });
  size_t slash = program.rfind('/');
  std::string folder = slash == std::string::npos ? "." : program.substr(0, slash);
  chosen.AddConfigEntry("session.model_external_initializers_file_folder_path", folder.c_str());
  return load(model, chosen);
}

// A tensor with room of its own.
template <typename T>
Ort::Value tensor(const std::vector<int64_t>& shape) {
  return Ort::Value::CreateTensor<T>(Ort::AllocatorWithDefaultOptions(), shape.data(), shape.size());
}

inline Ort::Value int64s(const std::vector<int64_t>& shape, const std::vector<int64_t>& values) {
  Ort::Value found = tensor<int64_t>(shape);
  std::copy(values.begin(), values.end(), found.GetTensorMutableData<int64_t>());
  return found;
}

// The array of a message as a tensor; its bytes stay where they are.
inline Ort::Value tensor(const Array& one) {
  static const std::map<std::string, ONNXTensorElementDataType> types = {
      {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
      {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},   {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
      {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},
  };
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto* data = const_cast<uint8_t*>(one.data);
  return Ort::Value::CreateTensor(memory, data, one.bytes, one.shape.data(), one.shape.size(), types.at(one.dtype));
}

// A float32 output without its first dimensions, of which there are `drop`.
inline Answer::Rows rows(const std::string& name, const Ort::Value& value, size_t drop = 0) {
  auto facts = value.GetTensorTypeAndShapeInfo();
  if (facts.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
    throw std::runtime_error("an output that is not float32");
  std::vector<int64_t> shape = facts.GetShape();
  const float* data = value.GetTensorData<float>();
  return {name, {shape.begin() + drop, shape.end()}, {data, data + facts.GetElementCount()}};
}

// A loaded graph, and what it calls its inputs and outputs.
struct Graph {
  Ort::Session session;
  std::vector<std::string> inputs, optional, outputs;

  explicit Graph(Ort::Session loaded) : session(std::move(loaded)) {
    Ort::AllocatorWithDefaultOptions allocator;
    auto names = [&](size_t count, auto name) {
      std::vector<std::string> found;
      for (size_t i = 0; i < count; ++i) found.push_back((session.*name)(i, allocator).get());
      return found;
    };
    inputs = names(session.GetInputCount(), &Ort::Session::GetInputNameAllocated);
    optional = names(session.GetOverridableInitializerCount(), &Ort::Session::GetOverridableInitializerNameAllocated);
    outputs = names(session.GetOutputCount(), &Ort::Session::GetOutputNameAllocated);
  }

  size_t output(const std::string& name) const {
    auto found = std::find(outputs.begin(), outputs.end(), name);
    if (found == outputs.end()) throw std::runtime_error("it has no output " + name);
    return static_cast<size_t>(found - outputs.begin());
  }

  bool takes(const std::string& name) const {
    auto in = [&](const auto& names) { return std::find(names.begin(), names.end(), name) != names.end(); };
    return in(inputs) || in(optional);
  }

  // All outputs. Inputs that the graph does not have are left out.
  std::vector<Ort::Value> run(const std::vector<std::pair<std::string, const Ort::Value*>>& given) {
    std::vector<const char*> names, results;
    std::vector<const OrtValue*> values;
    for (const auto& [name, value] : given) {
      if (!takes(name)) continue;
      names.push_back(name.c_str());
      values.push_back(*value);
    }
    for (const std::string& one : outputs) results.push_back(one.c_str());
    std::vector<OrtValue*> raw(outputs.size());
    asked("run it", [&] {
      Ort::ThrowOnError(Ort::GetApi().Run(session, nullptr, names.data(), values.data(), values.size(), results.data(),
                                          results.size(), raw.data()));
    });
    std::vector<Ort::Value> found;
    for (OrtValue* one : raw) found.emplace_back(one);
    return found;
  }
};

}  // namespace dlqat::onnx
