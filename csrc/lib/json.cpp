#include "lib/json.h"

#include <algorithm>
#include <cstdio>

#include "lib/error.h"

namespace fk::lib {

namespace {

constexpr int64_t MOST_VALUES = 1 << 20;
constexpr int DEEPEST = 64;

class Parser {
 public:
  Parser(std::string_view text, const char* what)
      : at_(text.data()), end_(at_ + text.size()), begin_(at_), what_(what) {}

  Json whole() {
    Json found;
    value(found, 0);
    space();
    if (at_ != end_) wrong("more text after its value");
    return found;
  }

 private:
  [[noreturn]] void wrong(const char* why) const {
    refuse("%s is no JSON: %s at byte %lld", what_, why, static_cast<long long>(at_ - begin_));
  }
  bool is(char c) const { return at_ < end_ && *at_ == c; }
  bool digit() const { return at_ < end_ && *at_ >= '0' && *at_ <= '9'; }
  void space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
  }
  void expect(char c, const char* why) {
    space();
    if (!is(c)) wrong(why);
    ++at_;
  }
  void literal(std::string_view word) {
    if (static_cast<size_t>(end_ - at_) < word.size() || std::string_view(at_, word.size()) != word) {
      wrong("an unknown word");
    }
    at_ += word.size();
  }

  void value(Json& out, int depth) {
    if (depth > DEEPEST) wrong("nested too deeply");
    space();
    if (at_ == end_) wrong("its end");
    switch (*at_) {
      case '{':
        return object(out, depth);
      case '[':
        return array(out, depth);
      case '"':
        out.kind = Json::STRING;
        return string(out.text);
      case 't':
        out.kind = Json::BOOLEAN, out.integer = 1;
        return literal("true");
      case 'f':
        out.kind = Json::BOOLEAN;
        return literal("false");
      case 'n':
        return literal("null");
      default:
        return number(out);
    }
  }

  void array(Json& out, int depth) {
    out.kind = Json::ARRAY;
    ++at_;
    space();
    if (is(']')) return void(++at_);
    for (;;) {
      value(out.items.emplace_back(), depth + 1);
      space();
      if (is(']')) return void(++at_);
      expect(',', "no comma");
    }
  }

  void object(Json& out, int depth) {
    out.kind = Json::OBJECT;
    ++at_;
    space();
    if (is('}')) return void(++at_);
    for (;;) {
      space();
      if (!is('"')) wrong("no key");
      string(out.keys.emplace_back());
      expect(':', "no colon");
      value(out.items.emplace_back(), depth + 1);
      space();
      if (is('}')) break;
      expect(',', "no comma");
    }
    ++at_;
    std::vector<const std::string*> sorted;
    for (const std::string& key : out.keys) sorted.push_back(&key);
    std::sort(sorted.begin(), sorted.end(), [](const std::string* a, const std::string* b) { return *a < *b; });
    for (size_t i = 1; i < sorted.size(); ++i) {
      if (*sorted[i] == *sorted[i - 1]) refuse("%s: the key %s is there twice", what_, shown(*sorted[i]).c_str());
    }
  }

  void number(Json& out) {
    out.kind = Json::INTEGER;
    const bool negative = is('-');
    at_ += negative;
    if (!digit()) wrong("no value");
    const bool zero = is('0');
    bool fits = true;
    int64_t value = 0;
    for (; digit(); ++at_) {
      fits = fits && !__builtin_mul_overflow(value, int64_t{10}, &value) &&
             !__builtin_add_overflow(value, int64_t{*at_ - '0'}, &value);
      if (zero && at_ + 1 < end_ && at_[1] >= '0' && at_[1] <= '9') wrong("a number that begins with 0");
    }
    if (is('.')) {
      ++at_, fits = false;
      if (!digit()) wrong("no digit");
      while (digit()) ++at_;
    }
    if (is('e') || is('E')) {
      ++at_, fits = false;
      if (is('+') || is('-')) ++at_;
      if (!digit()) wrong("no digit");
      while (digit()) ++at_;
    }
    if (!fits) out.kind = Json::REAL;
    out.integer = fits ? (negative ? -value : value) : 0;
  }

  uint32_t hex() {
    if (end_ - at_ < 4) wrong("its end");
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = *at_;
      const int nibble = c >= '0' && c <= '9'   ? c - '0'
                         : c >= 'a' && c <= 'f' ? c - 'a' + 10
                         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                : -1;
      if (nibble < 0) wrong("no hex digit");
      code = code << 4 | static_cast<uint32_t>(nibble);
    }
    return code;
  }

  static void append(std::string& out, uint32_t code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xC0 | code >> 6);
    } else if (code < 0x10000) {
      out += static_cast<char>(0xE0 | code >> 12);
      out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    } else {
      out += static_cast<char>(0xF0 | code >> 18);
      out += static_cast<char>(0x80 | (code >> 12 & 0x3F));
      out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    }
    if (code >= 0x80) out += static_cast<char>(0x80 | (code & 0x3F));
  }

  void escape(std::string& out) {
    if (++at_ == end_) wrong("its end");
    const char c = *at_++;
    constexpr std::string_view names = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
    if (const size_t i = names.find(c); i != names.npos) return void(out += meant[i]);
    if (c != 'u') wrong("an unknown escape");
    uint32_t code = hex();
    if (code >= 0xD800 && code < 0xDC00 && end_ - at_ >= 2 && at_[0] == '\\' && at_[1] == 'u') {
      at_ += 2;
      const uint32_t low = hex();
      if (low < 0xDC00 || low > 0xDFFF) wrong("half of a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00));
    }
    if (code >= 0xD800 && code < 0xE000) wrong("half of a surrogate pair");
    append(out, code);
  }

  // A character of two to four bytes of UTF-8.
  void wide(std::string& out) {
    const uint8_t first = static_cast<uint8_t>(*at_);
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    if (first < 0xC2 || first > 0xF4 || end_ - at_ <= more) wrong("text that is not UTF-8");
    uint32_t code = first & (0x3Fu >> more);
    for (int i = 1; i <= more; ++i) {
      const uint8_t next = static_cast<uint8_t>(at_[i]);
      if ((next & 0xC0) != 0x80) wrong("text that is not UTF-8");
      code = code << 6 | (next & 0x3Fu);
    }
    constexpr uint32_t least[4] = {0, 0x80, 0x800, 0x10000};
    if (code < least[more] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) wrong("text that is not UTF-8");
    out.append(at_, static_cast<size_t>(more + 1));
    at_ += more + 1;
  }

  void string(std::string& out) {
    ++at_;
    for (;;) {
      if (at_ == end_) wrong("a string without end");
      const uint8_t c = static_cast<uint8_t>(*at_);
      if (c == '"') return void(++at_);
      if (c < 0x20) wrong("a control character");
      if (c == '\\') {
        escape(out);
      } else if (c >= 0x80) {
        wide(out);
      } else {
        out += *at_++;
      }
    }
  }

  const char *at_, *end_, *begin_, *what_;
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  for (size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] == key) return &items[i];
  }
  return nullptr;
}

Json parse_json(std::string_view text, const char* what) {
  const int64_t values =
      std::count_if(text.begin(), text.end(), [](char c) { return c == '{' || c == '[' || c == ','; });
  if (values > MOST_VALUES) {
    refuse("%s has %lld of the characters { [ , at most %lld are read", what, static_cast<long long>(values),
           static_cast<long long>(MOST_VALUES));
  }
  return Parser(text, what).whole();
}

void append_json(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    constexpr std::string_view special = "\"\\\b\f\n\r\t", name = "\"\\bfnrt";
    if (const size_t i = special.find(c); i != special.npos) {
      out += '\\';
      out += name[i];
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      out += escaped;
    } else {
      out += c;
    }
  }
  out += '"';
}

}  // namespace fk::lib
