// What one lane of a warp does in kernel.cu: reads weights and x, looks codes up, multiplies, waits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace {

constexpr int TILE_ROWS = 16;
constexpr int SLICE = 256;  // columns of a tile
constexpr int BLOCK = 64;   // columns that share a scale
constexpr int CHUNKS = SLICE / BLOCK;
constexpr int CHUNK_BYTES = TILE_ROWS * BLOCK / 2;  // 16 for each lane
constexpr int TABLE_LINE = 256;
constexpr int TABLE_BYTES = 256 * TABLE_LINE;
constexpr int MOST_WARPS = 16;

// NF4 codes times 1.436715 / 128 in bfloat16. A common factor costs nothing, it is taken out of the sum at the end: this
// one brings the rounding of the codes from 1.4e-3 to 0.8e-3 (root mean square, normal weights), and by the 128 the sum
// of a block of 64 products cannot overflow. bfloat16 rather than half: any x that is finite stays so.
__constant__ const unsigned short TABLE[16] = {0xbc38, 0xbc00, 0xbbc1, 0xbb91, 0xbb51, 0xbb08, 0xba86, 0x0000,
                                               0x3a6a, 0x3aed, 0x3b35, 0x3b79, 0x3ba2, 0x3bcf, 0x3c05, 0x3c38};
constexpr float TABLE_FACTOR = 1.436715f / 128.0f;

__constant__ const float CODES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

template <typename Scale>
constexpr int TILE_BYTES = CHUNKS * (CHUNK_BYTES + TILE_ROWS * int(sizeof(Scale)));

struct Arguments {
    const __nv_bfloat16* x;         // [m, k]
    const unsigned char* tiles;     // [ceil(n / 16), ceil(k / 256), TILE_BYTES]
    const __nv_bfloat16* bias;      // [n], or null
    const __nv_bfloat16* residual;  // [m, n], added to y, or null
    const __nv_bfloat16* norm;      // [k]: x is normalised first (RMS), or null
    __nv_bfloat16* y;               // [m, n]
    float* partial;                 // [splits, m, n], null for one split
    float epsilon;                  // of the norm
    int m, n, k;
};

// Programmatic dependent launch: this grid may begin while the one before it in the stream still runs. Until `wait`
// only weights may be read, which nobody writes any more, and nothing may be written.
__device__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Weights are read once and by one processor: nothing of them is kept near it. Volatile, so that a load stands where
// it is written, long before its use.
__device__ uint4 stream(const uint4* at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

__device__ unsigned stream(const unsigned* at) {
    unsigned v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(at));
    return v;
}

__device__ uint2 stream(const uint2* at) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at));
    return v;
}

// From the second-level cache: the grid before may have written x while this one was already there.
__device__ uint4 fresh(const uint4* at) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at)
                 : "memory");
    return v;
}

__device__ float fresh(const __nv_bfloat16* at) {
    const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short*>(at));
    return __uint_as_float(unsigned(bits) << 16);
}

// The two numbers of a word.
__device__ float2 both(unsigned word) { return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)); }

// Scales of one block of 64 columns in the lane's two rows, g and g + 8.
template <typename Scale>
struct Pair;

template <>
struct Pair<__half> {
    unsigned word;
    __device__ void read(const unsigned char* at) { word = stream(reinterpret_cast<const unsigned*>(at)); }
    __device__ float2 scales() const { return __half22float2(*reinterpret_cast<const __half2*>(&word)); }
};

template <>
struct Pair<float> {
    uint2 word;
    __device__ void read(const unsigned char* at) { word = stream(reinterpret_cast<const uint2*>(at)); }
    __device__ float2 scales() const { return make_float2(__uint_as_float(word.x), __uint_as_float(word.y)); }
};

// A lane's part of 64 columns of a tile: 16 columns of row g (x, y), the same of row g + 8 (z, w), and their scales.
template <typename Scale>
struct Chunk {
    uint4 codes;
    Pair<Scale> pair;
    __device__ void read(const unsigned char* tile, int chunk, int lane) {
        codes = stream(reinterpret_cast<const uint4*>(tile + chunk * CHUNK_BYTES) + lane);
        const unsigned char* scales = tile + CHUNKS * CHUNK_BYTES + chunk * TILE_ROWS * sizeof(Scale);
        pair.read(scales + (lane >> 2) * 2 * sizeof(Scale));
    }
};

// The two numbers of byte `which` of a word. `lane_offset` is 4 times the lane.
template <int which>
__device__ unsigned look_up(const unsigned char* table, unsigned word, unsigned lane_offset) {
    const unsigned at = __byte_perm(word, lane_offset, 0x5504 | which << 4);  // byte * 256 + lane_offset
    return *reinterpret_cast<const unsigned*>(table + at);
}

__device__ void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ void fill_table(unsigned char* table) {
    for (int i = threadIdx.x; i < 256 * 8; i += blockDim.x) {  // eight threads a line: 16 bytes each, no two in a bank
        const int byte = i >> 3;
        const unsigned word = unsigned(TABLE[byte >> 4]) | unsigned(TABLE[byte & 15]) << 16;  // even column, odd column
        *reinterpret_cast<uint4*>(table + byte * TABLE_LINE + (i & 7) * 16) = make_uint4(word, word, word, word);
    }
}

// One step: 16 columns, of which the lane has four of row g and four of row g + 8.
template <int step, int GROUPS>
__device__ void multiply_step(float (&sum)[GROUPS][4], const unsigned char* table, const uint4& codes, unsigned offset,
                              const unsigned (&x)[GROUPS][CHUNKS][8], int chunk) {
    const unsigned top = step < 2 ? codes.x : codes.y, bottom = step < 2 ? codes.z : codes.w;
    constexpr int byte = 2 * (step & 1);
    const unsigned a[4] = {look_up<byte>(table, top, offset), look_up<byte>(table, bottom, offset),
                           look_up<byte + 1>(table, top, offset), look_up<byte + 1>(table, bottom, offset)};
#pragma unroll
    for (int j = 0; j < GROUPS; ++j) multiply_add(sum[j], a, x[j][chunk][2 * step], x[j][chunk][2 * step + 1]);
}

// Two numbers of x times the norm's weight; what their squares add is added to `squares`.
__device__ unsigned weighted(unsigned x, unsigned weight, float& squares) {
    const float2 numbers = both(x), factors = both(weight);
    squares = __fmaf_rn(numbers.x, numbers.x, squares);
    squares = __fmaf_rn(numbers.y, numbers.y, squares);
    const __nv_bfloat162 out =
        __floats2bfloat162_rn(__fmul_rn(numbers.x, factors.x), __fmul_rn(numbers.y, factors.y));
    return *reinterpret_cast<const unsigned*>(&out);
}

__device__ uint4 weighted(const uint4& x, const uint4& weight, float& squares) {
    const unsigned a = weighted(x.x, weight.x, squares), b = weighted(x.y, weight.y, squares);
    const unsigned c = weighted(x.z, weight.z, squares), d = weighted(x.w, weight.w, squares);
    return make_uint4(a, b, c, d);
}

// The number of y: `factor` is one over the root of x's mean square where x is to be normalised.
__device__ __nv_bfloat16 finished(const Arguments& a, float sum, float factor, int row, int column) {
    float found = __fmul_rn(__fmul_rn(sum, 1.0f / TABLE_FACTOR), factor);
    if (a.bias) found = __fadd_rn(found, __bfloat162float(a.bias[row]));
    if (a.residual) found = __fadd_rn(found, fresh(a.residual + size_t(column) * a.n + row));
    return __float2bfloat16_rn(found);
}

}  // namespace
