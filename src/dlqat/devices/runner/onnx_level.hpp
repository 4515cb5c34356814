// SPDX-License-Identifier: Apache-2.0
// The accuracy_level of a graph's MatMulNBits, set in the bytes of its ONNX file, as ../host/ort.py does with the onnx
// package. The artifact stays as it is.
//
// A protobuf message is a row of fields: a tag (number and kind as a varint), then a varint, 4 or 8 bytes, or a length
// and so many bytes. Only the way down to the attribute is read, all else is copied:
//
//     ModelProto.graph = 7    GraphProto.node = 1    NodeProto.op_type = 4, .attribute = 5
//     AttributeProto.name = 1, .i = 3, .type = 20 (INT = 2)

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace dlqat::onnx {

struct Field {
  uint64_t number;
  std::string_view whole;    // with its tag
  std::string_view content;  // of bytes, strings and messages; of the others nothing
};

inline uint64_t varint(std::string_view message, size_t* at) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && *at < message.size(); shift += 7) {
    auto byte = static_cast<uint8_t>(message[(*at)++]);
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  throw std::runtime_error("a number that does not end");
}

inline std::vector<Field> fields(std::string_view message) {
  std::vector<Field> found;
  for (size_t at = 0; at < message.size();) {
    size_t start = at;
    uint64_t tag = varint(message, &at), length = 0;
    switch (tag & 7) {
      case 0: varint(message, &at); break;
      case 1: length = 8; break;
      case 2: length = varint(message, &at); break;
      case 5: length = 4; break;
      default: throw std::runtime_error("a field of unknown kind");
    }
    if (length > message.size() - at) throw std::runtime_error("it ends too early");
    std::string_view content = (tag & 7) == 2 ? message.substr(at, length) : std::string_view();
    at += length;
    found.push_back({tag >> 3, message.substr(start, at - start), content});
  }
  return found;
}

inline void append(std::string* out, uint64_t number, std::string_view content) {
  for (uint64_t value : {number << 3 | 2, static_cast<uint64_t>(content.size())}) {
    for (; value >= 0x80; value >>= 7) *out += static_cast<char>(value | 0x80);
    *out += static_cast<char>(value);
  }
  *out += content;
}

inline std::string_view text(std::string_view message, uint64_t number) {
  for (const Field& one : fields(message))
    if (one.number == number) return one.content;
  return {};
}

// `model`, with this level at every MatMulNBits; the nodes that there are. Throws if it is no protobuf message.
inline std::string at_level(std::string_view model, int level, int* nodes) {
  std::string attribute;
  append(&attribute, 1, "accuracy_level");
  attribute += {0x18, static_cast<char>(level), '\xA0', 0x01, 0x02};  // field 3: level; field 20: INT
  std::string out, graph, node;
  for (const Field& part : fields(model)) {
    if (part.number != 7) {
      out += part.whole;
      continue;
    }
    graph.clear();
    for (const Field& one : fields(part.content)) {
      if (one.number != 1 || text(one.content, 4) != "MatMulNBits") {
        graph += one.whole;
        continue;
      }
      node.clear();
      for (const Field& member : fields(one.content))
        if (member.number != 5 || text(member.content, 1) != "accuracy_level") node += member.whole;
      append(&node, 5, attribute);
      append(&graph, 1, node);
      ++*nodes;
    }
    append(&out, 7, graph);
  }
  return out;
}

}  // namespace dlqat::onnx
