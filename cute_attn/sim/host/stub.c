/* Stands in for the CUDA runtime that compiled host code calls: hands each kernel launch to a callback, runs nothing.
   The symbols are those that host code compiled by the CuTe DSL leaves undefined, with their first "cu" turned to "ca",
   as `retargeted` in stub.py does to the host code: so the real runtime may be loaded too. What is not modelled fails. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_SUPPORTED = 801 }; /* cudaError_t */
enum { TAKEN = 0x7a6b }; /* by the callback; nothing that a callback which Python could not call might leave behind */

typedef struct { const void *image; } library_t;
typedef struct { library_t *library; char name[]; } kernel_t;
typedef int (*launch_t)(const char *kernel, const void *image, const void *config, void **arguments);
typedef void (*raise_t)(const char *kind, const char **parts, int count); /* TVMFFIErrorSetRaisedFromCStrParts */

static launch_t on_launch;

void cute_attn_stub_on_launch(launch_t callback) { on_launch = callback; }

int _cadaLaunchKernelEx(const void *config, kernel_t *kernel, void **arguments) {
  return on_launch && on_launch(kernel->name, kernel->library->image, config, arguments) == TAKEN ? SUCCESS : NOT_SUPPORTED;
}

int _cadaLibraryLoadData(library_t **library, const void *image, void *o1, void *v1, unsigned n1, void *o2, void *v2, unsigned n2) {
  (void)o1, (void)v1, (void)n1, (void)o2, (void)v2, (void)n2;
  if (!(*library = malloc(sizeof(library_t)))) return OUT_OF_MEMORY;
  (*library)->image = image;
  return SUCCESS;
}

int _cadaLibraryGetKernel(kernel_t **kernel, library_t *library, const char *name) {
  size_t length = strlen(name) + 1;
  if (!(*kernel = malloc(sizeof(kernel_t) + length))) return OUT_OF_MEMORY;
  (*kernel)->library = library;
  memcpy((*kernel)->name, name, length);
  return SUCCESS;
}

int _cadaGetDevice(int *device) { *device = 0; return SUCCESS; }
int _cadaSetDevice(int device) { return device == 0 ? SUCCESS : INVALID_VALUE; }
int _cadaFuncSetAttribute(kernel_t *kernel, int attribute, int value) {
  (void)kernel, (void)attribute, (void)value;
  return SUCCESS;
}
int _cadaKernelSetAttributeForDevice(kernel_t *kernel, int attribute, int value, int device) {
  (void)kernel, (void)attribute, (void)value;
  return _cadaSetDevice(device);
}

int _caKernelGetAttribute(int *value, int attribute, kernel_t *kernel, int device) {
  (void)kernel, (void)device;
  if (attribute != 1) return INVALID_VALUE; /* static shared memory: the DSL allocates all of it dynamically */
  *value = 0;
  return SUCCESS;
}

int _cadaDeviceGetAttribute(int *value, int attribute, int device) {
  static const int hopper[][2] = {
      {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},        /* threads of a block, and along x, y, z */
      {5, 2147483647}, {6, 65535}, {7, 65535},         /* blocks of a grid along x, y, z */
      {8, 49152}, {97, 232448}, {81, 233472},          /* shared memory: of a block, opted in, of a multiprocessor */
      {10, 32}, {16, 132}, {75, 9}, {76, 0},           /* warp size, multiprocessors, compute capability */
  };
  (void)device;
  for (size_t i = 0; i < sizeof hopper / sizeof *hopper; i++)
    if (hopper[i][0] == attribute) { *value = hopper[i][1]; return SUCCESS; }
  return INVALID_VALUE;
}

const char *cada_dialect_get_error_name(int code) {
  return code == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : code == NOT_SUPPORTED ? "cudaErrorNotSupported" : "cudaErrorInvalidValue";
}

/* `state` guards a module's one library: 0 until loaded. Callers hold Python's lock, so no atomics. */
int cada_dialect_init_library_once(void **state, int (*init)(void **), int (*load)(void **, int), void (*raise)(const char *, const char *)) {
  void *library = NULL;
  if (*state) return SUCCESS;
  if (init(&library) != SUCCESS || (load && load(&library, 0) != SUCCESS)) {
    raise("RuntimeError", "the simulator's runtime could not load the kernels of this function");
    return -1;
  }
  *state = library;
  return SUCCESS;
}

void cada_dialect_unload_library_once(void **state) {
  free(*state);
  *state = NULL;
}

void CateDSLRT_TVMFFISetRaisedCudaError(raise_t raise, int code) {
  const char *parts[] = {"the simulator's runtime returned ", cada_dialect_get_error_name(code),
                         code == NOT_SUPPORTED ? ": this function launches kernels outside cute_attn.sim.run" : ""};
  raise("RuntimeError", parts, 3);
}

void CateDSLRT_TVMFFISetRaisedCudaLaunchError(
    raise_t raise, int gx, int gy, int gz, int bx, int by, int bz, int threads, long long smem, int device, int max_threads,
    int max_bx, int max_by, int max_bz, int max_gx, int max_gy, int max_gz, int max_smem, int max_smem_optin,
    const char *violation, const char *file, int line, int column, int end_column) {
  char text[512];
  const char *parts[] = {text};
  (void)device, (void)max_threads, (void)max_bx, (void)max_by, (void)max_bz, (void)max_gx, (void)max_gy, (void)max_gz;
  (void)max_smem, (void)max_smem_optin, (void)column, (void)end_column;
  snprintf(text, sizeof text, "launch refused (%s): grid (%d, %d, %d), block (%d, %d, %d) of %d threads, %lld bytes of shared memory, %s:%d",
           violation, gx, gy, gz, bx, by, bz, threads, smem, file, line);
  raise("RuntimeError", parts, 1);
}
