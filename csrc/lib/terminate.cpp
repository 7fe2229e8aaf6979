// Instead of libstdc++'s handler, which would bring a demangler to print what nobody caught. No exception leaves the
// library; where one is thrown while another one is on its way, the process ends all the same.
#ifdef __GLIBCXX__
#endif
#include <exception>

#include <stdlib.h>

#if defined(__GLIBCXX__)
namespace __cxxabiv1 {
extern std::terminate_handler __terminate_handler;
std::terminate_handler __terminate_handler = abort;
}  // namespace __cxxabiv1
#endif
