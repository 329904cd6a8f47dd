// What kernel.cu uses of CUDA, for a C++20 compiler: a thread for each thread of a grid, barriers for its barriers.
// Blocks run one after the other. Shared memory begins as NaN.
#pragma once
#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __constant__
#define __shared__ static
#define __launch_bounds__(...)

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
using __half = _Float16;
struct __half2 { __half x, y; };
struct __nv_bfloat16 { uint16_t bits; };
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float2 __half22float2(__half2 pair) { return {float(pair.x), float(pair.y)}; }
inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(unsigned(value.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    if (value != value) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
template <typename T>
T __ldcg(const T* at) { return *at; }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = uint64_t(high) << 32 | low;
    unsigned found = 0;
    for (int i = 0; i < 4; ++i) found |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return found;
}

namespace on_cpu {
struct Warp {
    std::barrier<> gate{32};
    unsigned a[32][4], b[32][2];
    float lent[32];
};
struct Block {
    std::barrier<> gate;
    std::vector<uint4> shared;
    std::vector<std::unique_ptr<Warp>> warps;
    Block(unsigned threads, size_t bytes) : gate(threads), shared(bytes / 16, uint4{~0u, ~0u, ~0u, ~0u}) {
        for (unsigned i = 0; i < threads / 32; ++i) warps.push_back(std::make_unique<Warp>());
    }
    unsigned char* memory() { return reinterpret_cast<unsigned char*>(shared.data()); }
};
inline thread_local Block* block;
}  // namespace on_cpu

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;
inline void __syncthreads() { on_cpu::block->gate.arrive_and_wait(); }

inline float __shfl_xor_sync(unsigned, float value, int other) {
    const int lane = threadIdx.x & 31;
    on_cpu::Warp& warp = *on_cpu::block->warps[threadIdx.x >> 5];
    warp.lent[lane] = value;
    warp.gate.arrive_and_wait();
    const float found = warp.lent[lane ^ other];
    warp.gate.arrive_and_wait();
    return found;
}

// mma.m16n8k16 as the PTX manual lays its registers out; terms are added in float64, in order.
inline void cpu_multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    on_cpu::Warp& warp = *on_cpu::block->warps[threadIdx.x >> 5];
    std::memcpy(warp.a[lane], a, sizeof(a));
    warp.b[lane][0] = b0;
    warp.b[lane][1] = b1;
    warp.gate.arrive_and_wait();
    const auto half = [](unsigned word, int odd) { return double(__uint_as_float(odd ? word & 0xffff0000u : word << 16)); };
    for (int e = 0; e < 4; ++e) {
        const int row = g + 8 * (e >> 1), column = 2 * t + (e & 1);
        double sum = d[e];
        for (int k = 0; k < 16; ++k) {
            const int pair = (k & 7) / 2;
            const unsigned left = warp.a[(row & 7) * 4 + pair][(row >= 8) + 2 * (k >= 8)];
            sum += half(left, k & 1) * half(warp.b[column * 4 + pair][k >= 8], k & 1);
        }
        d[e] = float(sum);
    }
    warp.gate.arrive_and_wait();
}

using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaSuccess, cudaLaunchAttributeProgrammaticStreamSerialization };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaLaunchAttribute {
    int id;
    struct {
        int programmaticStreamSerializationAllowed;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};
inline const char* cudaGetErrorString(cudaError_t) { return "on a CPU"; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) { return cudaSuccess; }
struct cudaFuncAttributes {};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* found, Kernel, int, size_t) {
    *found = 1;
    return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Parameters... values) {
    const unsigned threads = config->blockDim.x;
    for (unsigned y = 0; y < config->gridDim.y; ++y) {
        for (unsigned x = 0; x < config->gridDim.x; ++x) {
            on_cpu::Block block(threads, config->dynamicSmemBytes);
            std::vector<std::thread> running;
            for (unsigned i = 0; i < threads; ++i)
                running.emplace_back([&, i] {
                    on_cpu::block = &block;
                    threadIdx = dim3(i);
                    blockIdx = dim3(x, y);
                    blockDim = config->blockDim;
                    gridDim = config->gridDim;
                    kernel(values...);
                });
            for (auto& thread : running) thread.join();
        }
    }
    return cudaSuccess;
}
