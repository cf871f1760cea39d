/* CUDA's runtime with one device that computes nothing: memory is the host's, streams and events are always done.
   Preloaded before libcudart, it lets torch describe tensors on cuda:0 (FakeTensor) without a card. */
#include <stdlib.h>
#include <string.h>
#include "driver_types.h"

#define DONE(name) cudaError_t name(void) { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13020; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "stand-in");
    properties->major = 9;
    properties->totalGlobalMem = 80ull << 30;
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxThreadsPerBlock = 1024;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) { *unused = *total = 80ull << 30; return cudaSuccess; }

cudaError_t cudaMalloc(void **memory, size_t size) { *memory = malloc(size); return cudaSuccess; }
cudaError_t cudaMallocHost(void **memory, size_t size) { return cudaMalloc(memory, size); }
cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned flags) { return cudaMalloc(memory, size); }
cudaError_t cudaFree(void *memory) { free(memory); return cudaSuccess; }
cudaError_t cudaFreeHost(void *memory) { return cudaFree(memory); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *memory) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeHost;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    *value = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *found) {
    *function = NULL;
    if (found) *found = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

DONE(cudaDeviceEnablePeerAccess) DONE(cudaDeviceGetDefaultMemPool) DONE(cudaDeviceGetPCIBusId)
DONE(cudaDeviceSynchronize) DONE(cudaEventCreate) DONE(cudaEventCreateWithFlags) DONE(cudaEventDestroy)
DONE(cudaEventElapsedTime) DONE(cudaEventQuery) DONE(cudaEventRecord) DONE(cudaEventRecordWithFlags)
DONE(cudaEventSynchronize) DONE(cudaFreeAsync) DONE(cudaFuncGetAttributes) DONE(cudaFuncSetAttribute)
DONE(cudaGetLastError) DONE(cudaGetSymbolAddress) DONE(cudaHostRegister) DONE(cudaHostUnregister)
DONE(cudaKernelSetAttributeForDevice) DONE(cudaLaunchHostFunc) DONE(cudaLaunchKernel) DONE(cudaLaunchKernelExC)
DONE(cudaMallocAsync) DONE(cudaMallocManaged) DONE(cudaMemPoolGetAttribute) DONE(cudaMemPoolSetAccess)
DONE(cudaMemPoolSetAttribute) DONE(cudaMemPoolTrimTo) DONE(cudaMemcpy) DONE(cudaMemcpy2DAsync)
DONE(cudaMemcpyPeerAsync) DONE(cudaMemcpyToSymbol) DONE(cudaMemset) DONE(cudaMemsetAsync)
DONE(cudaOccupancyMaxActiveBlocksPerMultiprocessor) DONE(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags)
DONE(cudaPeekAtLastError) DONE(cudaProfilerStart) DONE(cudaProfilerStop) DONE(cudaSetDevice)
DONE(cudaStreamAddCallback) DONE(cudaStreamBeginCapture) DONE(cudaStreamCreate) DONE(cudaStreamCreateWithFlags)
DONE(cudaStreamCreateWithPriority) DONE(cudaStreamDestroy) DONE(cudaStreamEndCapture)
DONE(cudaStreamGetCaptureInfo) DONE(cudaStreamGetPriority) DONE(cudaStreamQuery) DONE(cudaStreamSynchronize)
DONE(cudaStreamUpdateCaptureDependencies) DONE(cudaStreamWaitEvent) DONE(cudaThreadExchangeStreamCaptureMode)
