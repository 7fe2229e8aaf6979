#include "lib/error.h"

#include <cstdarg>
#include <cstdio>

namespace fk::lib {

namespace {

constexpr size_t LONGEST = 1000, LONGEST_SHOWN = 100;

[[noreturn]] void fail_with(frozen_status status, const char* format, va_list arguments) {
  char text[LONGEST];
  vsnprintf(text, sizeof text, format, arguments);
  throw Error{status, text};
}

}  // namespace

void fail(frozen_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fail_with(status, format, arguments);
}

void refuse(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fail_with(FROZEN_TICKET, format, arguments);
}

std::string shown(std::string_view text) {
  std::string out = "'";
  for (const char c : text.substr(0, LONGEST_SHOWN)) {
    char escaped[8];
    if (c >= 0x20 && c < 0x7F && c != '\\' && c != '\'') {
      out += c;
    } else {
      snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
      out += escaped;
    }
  }
  return out + (text.size() > LONGEST_SHOWN ? "...'" : "'");
}

}  // namespace fk::lib
