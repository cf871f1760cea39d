/* What driver_types.h needs of a header that CUDA's wheels lack. */
#define CUDARTAPI
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_align__(bytes) __attribute__((aligned(bytes)))
#define __cuda_builtin_vector_align8(tag, members) struct __attribute__((aligned(8))) tag { members }
