/* NVIDIA's driver of one card, as far as its memory is asked for: a test says how much of it is free. */
#include <stddef.h>

static _Thread_local void *current;
static int context;
size_t stand_in_free = 80ull << 30;

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void **made, int device) { *made = &context; return 0; }
int cuCtxSetCurrent(void *wanted) { current = wanted; return 0; }
int cuMemGetInfo_v2(size_t *unused, size_t *total) {
    if (current != &context) return 201; /* invalid context */
    *unused = stand_in_free, *total = 80ull << 30;
    return 0;
}
