// A libcuda.so.1 without a GPU: FAKE_DRIVER_VERSION as CUDA counts versions (12040), and no device. CUDA's runtime asks
// for every function by name.
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NO_DEVICE = 100, NOT_SUPPORTED = 801 };

int cuDriverGetVersion(int* version) {
  const char* const said = getenv("FAKE_DRIVER_VERSION");
  *version = said ? atoi(said) : 12040;
  return SUCCESS;
}
int cuInit(unsigned flags) {
  (void)flags;
  return NO_DEVICE;
}
static int not_supported(void) { return NOT_SUPPORTED; }

int cuGetProcAddress_v2(const char* name, void** function, int version, unsigned long flags, int* status) {
  (void)version, (void)flags;
  *function = (void*)not_supported;
  if (!strcmp(name, "cuDriverGetVersion")) *function = (void*)cuDriverGetVersion;
  if (!strcmp(name, "cuInit")) *function = (void*)cuInit;
  if (!strcmp(name, "cuGetProcAddress")) *function = (void*)cuGetProcAddress_v2;
  if (status) *status = 0;
  return SUCCESS;
}
