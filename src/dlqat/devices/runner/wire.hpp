// SPDX-License-Identifier: Apache-2.0
// The messages of ../wire.py in C++17 and nothing but the standard library, for runners on devices without Python.
//
//     "DLQ1"  header length uint32  payload length uint64  header (JSON)  payload (arrays, raw, in order)
//
// Little-endian, as every CPU is that a runner is built for.

#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace dlqat {

// A JSON value: what headers hold, and no more.
struct Json {
  enum Kind { kNull, kBool, kNumber, kString, kList, kObject } kind = kNull;
  double number = 0;  // kBool: 0 or 1
  std::string text;
  std::vector<Json> list;
  std::map<std::string, Json> object;

  const Json& at(const std::string& key) const {
    auto found = object.find(key);
    if (found == object.end()) throw std::runtime_error("a message without " + key);
    return found->second;
  }
};

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Json value() {
    switch (peek()) {
      case '{': return object();
      case '[': return list();
      case '"': return string();
      case 't': word("true"); return {Json::kBool, 1};
      case 'f': word("false"); return {Json::kBool, 0};
      case 'n': word("null"); return {};
      default: return number();
    }
  }

 private:
  const std::string& text_;
  size_t at_ = 0;

  char peek() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_])) ++at_;
    if (at_ >= text_.size()) throw std::runtime_error("a header that ends too early");
    return text_[at_];
  }

  void word(const std::string& wanted) {
    peek();
    if (text_.compare(at_, wanted.size(), wanted) != 0) throw std::runtime_error("a header that is no JSON");
    at_ += wanted.size();
  }

  Json object() {
    Json found{Json::kObject};
    for (word("{"); peek() != '}'; peek() == ',' ? word(",") : void()) {
      std::string key = string().text;
      word(":");
      found.object[key] = value();
    }
    word("}");
    return found;
  }

  Json list() {
    Json found{Json::kList};
    for (word("["); peek() != ']'; peek() == ',' ? word(",") : void()) found.list.push_back(value());
    word("]");
    return found;
  }

  Json string() {
    Json found{Json::kString};
    for (word("\""); at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] != '\\') {
        found.text += text_[at_];
        continue;
      }
      char next = ++at_ < text_.size() ? text_[at_] : '"';
      if (next == 'u') {  // Python escapes all that is not ASCII
        utf8(std::strtoul(text_.substr(at_ + 1, 4).c_str(), nullptr, 16), &found.text);
        at_ += 4;
      } else {
        const char* known = std::strchr("b\bf\fn\nr\rt\t", next);
        found.text += known ? known[1] : next;
      }
    }
    word("\"");
    return found;
  }

  Json number() {
    char* end = nullptr;
    Json found{Json::kNumber, std::strtod(text_.c_str() + at_, &end)};
    if (end == text_.c_str() + at_) throw std::runtime_error("a header that is no JSON");
    at_ = static_cast<size_t>(end - text_.c_str());
    return found;
  }

  static void utf8(unsigned long code, std::string* out) {  // surrogate pairs do not occur in file names that we push
    if (code < 0x80) {
      *out += static_cast<char>(code);
    } else if (code < 0x800) {
      *out += {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
    } else {
      *out += {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 0x3F)),
               static_cast<char>(0x80 | (code & 0x3F))};
    }
  }
};

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    char escaped[8];
    if (c == '"' || c == '\\') {
      out += {'\\', static_cast<char>(c)};
    } else if (c < 0x20) {
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      out += escaped;
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + '"';
}

struct Array {
  std::string name, dtype;
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;  // in the payload of its message
  size_t bytes = 0;
};

struct Message {
  Json header;
  std::vector<uint8_t> payload;
  std::vector<Array> arrays;

  const Array& array(const std::string& name) const {
    for (const Array& one : arrays)
      if (one.name == name) return one;
    throw std::runtime_error("a message without the array " + name);
  }

  // The arrays that are named NUMBER/NAME, by NAME.
  std::vector<Array> batch(int number) const {
    std::string prefix = std::to_string(number) + "/";
    std::vector<Array> found;
    for (const Array& one : arrays) {
      if (one.name.compare(0, prefix.size(), prefix) != 0) continue;
      found.push_back(one);
      found.back().name.erase(0, prefix.size());
    }
    return found;
  }
};

// What goes back: JSON members without braces, and float32 arrays.
struct Answer {
  std::string members;
  struct Rows {
    std::string name;
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  std::vector<Rows> arrays;
};

class Wire {
 public:
  // Takes stdin and stdout; from here on, what a library prints to stdout goes to stderr.
  Wire() : in_(fdopen(0, "rb")), out_(fdopen(dup(1), "wb")) { dup2(2, 1); }

  // The next message; none when the driver has closed the stream.
  std::optional<Message> read() {
    char head[16];
    if (std::fread(head, 1, sizeof head, in_) < sizeof head) return std::nullopt;
    uint32_t header_length;
    uint64_t payload_length;
    std::memcpy(&header_length, head + 4, 4);
    std::memcpy(&payload_length, head + 8, 8);
    if (std::memcmp(head, "DLQ1", 4) != 0) throw std::runtime_error("not a message of dlqat");
    std::string header(header_length, ' ');
    Message message;
    message.payload.resize(payload_length);
    if (std::fread(header.data(), 1, header_length, in_) < header_length) return std::nullopt;
    if (std::fread(message.payload.data(), 1, payload_length, in_) < payload_length) return std::nullopt;
    message.header = Parser(header).value();
    size_t at = 0;
    for (const Json& one : message.header.at("arrays").list) {
      Array array{one.at("name").text, one.at("dtype").text};
      array.bytes = size_of(array.dtype);
      for (const Json& length : one.at("shape").list) {
        array.shape.push_back(static_cast<int64_t>(length.number));
        array.bytes *= static_cast<size_t>(length.number);
      }
      if (at + array.bytes > payload_length) throw std::runtime_error("a payload that is too short");
      array.data = message.payload.data() + at;
      at += array.bytes;
      message.arrays.push_back(array);
    }
    return message;
  }

  void write(const Answer& answer) {
    std::string header = "{" + answer.members + (answer.members.empty() ? "" : ",") + "\"arrays\":[";
    uint64_t payload_length = 0;
    for (const Answer::Rows& rows : answer.arrays) {
      header += (payload_length ? "," : "") + ("{\"name\":" + quoted(rows.name)) + ",\"dtype\":\"float32\",\"shape\":[";
      for (size_t i = 0; i < rows.shape.size(); ++i) header += (i ? "," : "") + std::to_string(rows.shape[i]);
      header += "]}";
      payload_length += 4 * rows.values.size();
    }
    header += "]}";
    char head[16] = {'D', 'L', 'Q', '1'};
    uint32_t header_length = static_cast<uint32_t>(header.size());
    std::memcpy(head + 4, &header_length, 4);
    std::memcpy(head + 8, &payload_length, 8);
    std::fwrite(head, 1, sizeof head, out_);
    std::fwrite(header.data(), 1, header.size(), out_);
    for (const Answer::Rows& rows : answer.arrays) std::fwrite(rows.values.data(), 4, rows.values.size(), out_);
    std::fflush(out_);
  }

 private:
  FILE* in_;
  FILE* out_;

  static size_t size_of(const std::string& dtype) {
    if (dtype == "int64") return 8;
    if (dtype == "float32" || dtype == "int32") return 4;
    if (dtype == "uint8" || dtype == "int8") return 1;
    throw std::runtime_error("arrays of " + dtype + " are not read here");
  }
};

}  // namespace dlqat
