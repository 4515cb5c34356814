// SPDX-License-Identifier: Apache-2.0
// A device without Python: onnxruntime behind the messages of wire.hpp, as ../worker.py with ../host/ort.py is.
//
// One process, one program, one cache, one row (no "batch"). build-onnxruntime.sh builds it; docs/devices.md says how
// with the NDK. The library beside it is loaded at the start: onnxruntime's API only ever grows at its end, so it may be
// newer than the headers.

#include <algorithm>
#include <map>
#include <memory>

#include "onnx_graph.hpp"

namespace {

using namespace dlqat::onnx;
using dlqat::Answer, dlqat::Array, dlqat::check_tokens, dlqat::Json, dlqat::Message, dlqat::now, dlqat::quoted;

const std::string kAllLogits = "num_logits_to_keep";  // optional input of programs that return the last row: 0 is all
const std::string kPast = "past_key_values", kPresent = "present";

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
    check_tokens(ids, count, vocabulary_);  // GatherBlockQuantized reads past its table
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
    Graph graph(load(at_level(model, level(setting), &nodes), options(setting)));
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
