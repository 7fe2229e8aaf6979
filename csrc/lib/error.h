// Errors inside libfrozen: thrown here, turned to a code and a message where C calls.
#pragma once
#include <string>
#include <string_view>

#include "lib/frozen.h"

namespace fk::lib {

struct Error {
  frozen_status status;
  std::string message;
};

// As printf writes it, cut after 1000 characters.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(frozen_status status, const char* format, ...);
// FROZEN_TICKET: what makes a file no ticket.
[[noreturn]] __attribute__((format(printf, 1, 2))) void refuse(const char* format, ...);

// A name or a text of a file as a message shows it: quoted, cut after 100 characters, nothing but printable ASCII.
std::string shown(std::string_view text);

}  // namespace fk::lib
