// JSON as the standard has it, of a file that nobody trusts: bounded in depth and in the number of values.
#pragma once
#include <stdint.h>

#include <string>
#include <string_view>
#include <vector>

namespace fk::lib {

struct Json {
  enum Kind { NOTHING, BOOLEAN, INTEGER, REAL, STRING, ARRAY, OBJECT };  // REAL: also an integer beyond int64

  Kind kind = NOTHING;
  int64_t integer = 0;
  std::string text;               // of a string
  std::vector<std::string> keys;  // of an object; no two are equal
  std::vector<Json> items;        // of an array, or the values of an object

  const Json* find(std::string_view key) const;
};

// Error FROZEN_TICKET, which calls the text `what`, where it is no JSON, has a key twice, text that is not UTF-8, more
// than 2^20 of the characters { [ and , or values nested more than 64 deep.
Json parse_json(std::string_view text, const char* what);

// A string as JSON has it, without escapes that are not needed: as Python's json writes with ensure_ascii=False.
void append_json(std::string& out, std::string_view text);

}  // namespace fk::lib
