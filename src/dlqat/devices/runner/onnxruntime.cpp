// SPDX-License-Identifier: Apache-2.0
// A device without Python: onnxruntime behind the messages of wire.hpp, as ../worker.py with ../host_ort.py is.
//
// One process, one program, one cache, one row (no "batch"). build-onnxruntime.sh builds it; docs/devices.md says how
// with the NDK. The library beside it is loaded at the start: onnxruntime's API only ever grows at its end, so it may be
// newer than the headers.

#define ORT_API_MANUAL_INIT
#include <dlfcn.h>
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <map>

#include "onnx_level.hpp"
#include "runner.hpp"

namespace {

using dlqat::Answer, dlqat::Array, dlqat::Json, dlqat::Message, dlqat::now, dlqat::quoted;

const std::string kAllLogits = "num_logits_to_keep";  // optional input of programs that return the last row: 0 is all
const std::string kPast = "past_key_values", kPresent = "present";

// The library; it stays loaded.
const OrtApiBase& library() {
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

int level(const Json& setting) { return setting.at("activations").text == "int8" ? 4 : 0; }

Ort::SessionOptions options(const Json& setting) {
  Ort::SessionOptions found;
  found.SetGraphOptimizationLevel(setting.at("optimize").number ? ORT_ENABLE_ALL : ORT_DISABLE_ALL);
  found.SetIntraOpNumThreads(static_cast<int>(setting.at("threads").number));
  found.SetInterOpNumThreads(1);
  found.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);  // its errors travel, once
  found.AddConfigEntry("session.intra_op.allow_spinning", "0");
  for (const Json& one : setting.at("options").list)
    found.AddConfigEntry(one.list.at(0).text.c_str(), one.list.at(1).text.c_str());
  found.AddConfigEntry("session.qdq_matmulnbits_accuracy_level", std::to_string(level(setting)).c_str());
  return found;
}

Ort::Env& environment() {
  static Ort::Env one(ORT_LOGGING_LEVEL_FATAL, "dlqat");
  return one;
}

Ort::Session load(std::string_view model, const Ort::SessionOptions& chosen) {
  return asked("load it", [&] { return Ort::Session(environment(), model.data(), model.size(), chosen); });
}

Ort::Session load(const std::string& program, const Json& setting, Ort::SessionOptions chosen) {
  std::ifstream file(program, std::ios::binary);
  if (!file) throw std::runtime_error("there is no file " + program);
  std::string model{std::istreambuf_iterator<char>(file), {}};
  int nodes = 0;
  try {
    model = dlqat::onnx::at_level(model, level(setting), &nodes);
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

Ort::Value int64s(const std::vector<int64_t>& shape, const std::vector<int64_t>& values) {
  Ort::Value found = tensor<int64_t>(shape);
  std::copy(values.begin(), values.end(), found.GetTensorMutableData<int64_t>());
  return found;
}

// The array of a message as a tensor; its bytes stay where they are.
Ort::Value tensor(const Array& one) {
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
Answer::Rows rows(const std::string& name, const Ort::Value& value, size_t drop = 0) {
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

// A decoder graph with its cache as past_key_values.* inputs and present.* outputs.
class Decoder {
 public:
  Decoder(const std::string& program, const Json& setting, Ort::SessionOptions chosen)
      : graph_(load(program, setting, std::move(chosen))) {
    for (size_t i = 0; i < graph_.inputs.size(); ++i) {
      const std::string& name = graph_.inputs[i];
      if (name.compare(0, kPast.size(), kPast) != 0) {
        if (name != "input_ids" && name != "attention_mask" && name != "position_ids" && name != kAllLogits)
          throw std::runtime_error("an input that no decoder of ours has: " + name);
        continue;
      }
      auto type = graph_.session.GetInputTypeInfo(i);
      auto facts = type.GetTensorTypeAndShapeInfo();
      if (facts.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
        throw std::runtime_error("the cache " + name + " is not float32, which this runner feeds");
      std::vector<int64_t> shape = facts.GetShape();
      past_.push_back({name, graph_.output(kPresent + name.substr(kPast.size())), {1, shape.at(1), 0, shape.at(3)}});
    }
    auto type = graph_.session.GetOutputTypeInfo(graph_.output("logits"));
    vocabulary_ = type.GetTensorTypeAndShapeInfo().GetShape().back();
    reset();
  }

  Answer::Rows logits(const int64_t* ids, int64_t count) {
    for (int64_t i = 0; i < count && vocabulary_ > 0; ++i)  // GatherBlockQuantized reads past its table without a word
      if (ids[i] < 0 || ids[i] >= vocabulary_)
        throw std::runtime_error("token " + std::to_string(ids[i]) + " is not in the vocabulary of " +
                                 std::to_string(vocabulary_));
    int64_t total = length_ + count;
    std::vector<int64_t> positions;
    for (int64_t i = length_; i < total; ++i) positions.push_back(i);
    Ort::Value tokens = int64s({1, count}, {ids, ids + count}), where = int64s({1, count}, positions);
    Ort::Value mask = int64s({1, total}, std::vector<int64_t>(total, 1)), all = int64s({}, {0});
    std::vector<std::pair<std::string, const Ort::Value*>> given = {
        {"input_ids", &tokens}, {"attention_mask", &mask}, {"position_ids", &where}, {kAllLogits, &all}};
    for (const Past& one : past_) given.emplace_back(one.name, &one.value);
    std::vector<Ort::Value> found = graph_.run(given);
    for (Past& one : past_) one.value = std::move(found[one.output]);
    length_ = total;
    return rows("logits", found[graph_.output("logits")], 1);
  }

  void reset() { truncate(0); }

  // Keep the first `length` tokens of the cache: [1, heads, tokens, width].
  void truncate(int64_t length) {
    length_ = std::max<int64_t>(0, std::min(length, length_));
    for (Past& one : past_) {
      int64_t heads = one.shape[1], width = one.shape[3];
      Ort::Value kept = tensor<float>({1, heads, length_, width});
      if (length_) {
        int64_t had = one.value.GetTensorTypeAndShapeInfo().GetShape()[2];
        const float* from = one.value.GetTensorData<float>();
        float* to = kept.GetTensorMutableData<float>();
        for (int64_t h = 0; h < heads; ++h) std::copy_n(from + h * had * width, length_ * width, to + h * length_ * width);
      }
      one.value = std::move(kept);
    }
  }

  // How often each kernel has run, out of onnxruntime's own profile; the session had profiling on.
  std::string kernels() {
    std::string path = graph_.session.EndProfilingAllocated(Ort::AllocatorWithDefaultOptions()).get();
    std::ifstream file(path);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    std::remove(path.c_str());
    std::map<std::string, int> counts;
    for (const Json& event : dlqat::Parser(text).value().list)
      if (event.object.count("args") && event.at("args").object.count("op_name") && event.at("cat").text == "Node")
        ++counts[event.at("args").at("op_name").text];
    std::string out;
    for (const auto& [name, count] : counts) out += (out.empty() ? "" : ",") + quoted(name) + ":" + std::to_string(count);
    return "{" + out + "}";
  }

 private:
  struct Past {
    std::string name;
    size_t output;               // which output it becomes
    std::vector<int64_t> shape;  // when it is empty
    Ort::Value value{nullptr};
  };

  Graph graph_;
  std::vector<Past> past_;
  int64_t length_ = 0, vocabulary_ = 0;
};

class Runner {
 public:
  Runner() {
    const OrtApi* api = library().GetApi(ORT_API_VERSION);
    if (!api) throw std::runtime_error("libonnxruntime.so is older than the headers that the runner was built with");
    Ort::InitApi(api);
  }

  Answer answer(const Message& message) {
    const std::string& op = message.header.at("op").text;
    Answer found;
    if (op == "open") open(message.header);
    else if (op == "logits") found = logits(message.array("token_ids"));
    else if (op == "reset") decoder().reset();
    else if (op == "truncate") decoder().truncate(static_cast<int64_t>(message.header.at("length").number));
    else if (op == "facts") found.members = "\"facts\":" + facts();
    else if (op == "evaluate") return evaluate(message);
    else throw std::runtime_error("this runner does not know " + op);
    if (decoder_) found.members += (found.members.empty() ? "" : ",") + ("\"timings\":" + timings_.json());
    return found;
  }

 private:
  std::unique_ptr<Decoder> decoder_;
  std::string program_;
  Json setting_;
  dlqat::Timings timings_;

  Decoder& decoder() {
    if (!decoder_) throw std::runtime_error("no program is open");
    return *decoder_;
  }

  void open(const Json& header) {
    decoder_.reset();
    timings_ = {};
    double start = now();
    program_ = header.at("program").text;
    setting_ = header.at("setting");
    decoder_ = std::make_unique<Decoder>(program_, setting_, options(setting_));
    timings_.load_seconds = now() - start;
  }

  Answer logits(const Array& ids) {
    if (ids.dtype != "int64") throw std::runtime_error("token ids are int64");
    auto count = static_cast<int64_t>(ids.bytes / sizeof(int64_t));
    double start = now();
    Answer found{"", {decoder().logits(reinterpret_cast<const int64_t*>(ids.data), count)}};
    timings_.count(count, now() - start);
    return found;
  }

  // Small programs, each with several inputs: the first output for each.
  Answer evaluate(const Message& message) {
    const Array& content = message.array("program");
    const Json& setting = message.header.at("setting");
    std::string model(reinterpret_cast<const char*>(content.data), content.bytes);
    int nodes = 0;
    Graph graph(load(dlqat::onnx::at_level(model, level(setting), &nodes), options(setting)));
    Answer found;
    for (int i = 0; i < static_cast<int>(message.header.at("batches").number); ++i) {
      std::vector<Array> arrays = message.batch(i);
      std::vector<Ort::Value> values;
      std::vector<std::pair<std::string, const Ort::Value*>> given;
      for (const Array& one : arrays) values.push_back(tensor(one));
      for (size_t k = 0; k < arrays.size(); ++k) given.emplace_back(arrays[k].name, &values[k]);
      found.arrays.push_back(rows(std::to_string(i), graph.run(given)[0]));
    }
    return found;
  }

  std::string facts() {
    decoder();
    Ort::SessionOptions profiled = options(setting_);
    const char* scratch = std::getenv("TMPDIR");  // Android's shell has none; it starts in a folder of ours
    profiled.EnableProfiling((std::string(scratch ? scratch : ".") + "/dlqat-profile").c_str());
    Decoder second(program_, setting_, std::move(profiled));
    int64_t token = 0;
    second.logits(&token, 1);
    return "{" + dlqat::machine_facts() + ",\"runtime\":" + quoted(std::string("onnxruntime ") + library().GetVersionString()) +
           ",\"provider\":\"CPUExecutionProvider\",\"graph_optimization\":" +
           quoted(setting_.at("optimize").number ? "ORT_ENABLE_ALL" : "ORT_DISABLE_ALL") +
           ",\"accuracy_level\":" + std::to_string(level(setting_)) +
           ",\"threads\":" + std::to_string(static_cast<int>(setting_.at("threads").number)) +
           ",\"kleidiai\":" + quoted(kleidiai()) + ",\"kernels\":" + second.kernels() + "}";
  }

  std::string kleidiai() const {
#ifdef __aarch64__
    for (const Json& one : setting_.at("options").list)
      if (one.list.at(0).text == "mlas.disable_kleidiai" && one.list.at(1).text == "1") return "off";
    return "if this build of onnxruntime has it; mlas.disable_kleidiai turns it off";
#else
    utsname system{};
    uname(&system);
    return std::string("no, ") + system.machine;
#endif
  }
};

}  // namespace

int main() { return dlqat::serve<Runner>(); }
