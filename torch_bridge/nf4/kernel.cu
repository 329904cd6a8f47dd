// y = x W^T for 1 to 16 rows of x, W in NF4 (bitsandbytes' codes, blocks of 64) laid out in tiles by layout.py.
//
// A tile is 16 rows of W by 256 columns. A block of threads walks over tiles of one range of columns; each of its warps
// owns 256 columns ("slice") and keeps its part of x in registers for the whole launch. Weights are the 16-row operand
// of mma m16n8k16, x the 8-column one: up to 8 rows of x cost one product, up to 16 two.
//
// A byte holds two codes, and the two 16-bit numbers they stand for are exactly one register of the 16-row operand: a
// table of 256 words in shared memory gives it with one load. The table is there once for every lane, so that no two
// lanes meet in a bank, in lines of 256 bytes, so that one byte permutation makes the address.
//
// Which terms are added in which order depends on the shape of W alone, not on the rows of x: the bits of a row of y
// are the same whatever it is multiplied with.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

namespace {

constexpr int TILE_ROWS = 16;
constexpr int SLICE = 256;  // columns of a tile
constexpr int BLOCK = 64;   // columns that share a scale
constexpr int CHUNKS = SLICE / BLOCK;
constexpr int CHUNK_BYTES = TILE_ROWS * BLOCK / 2;  // 16 for each lane
constexpr int TABLE_LINE = 256;
constexpr int TABLE_BYTES = 256 * TABLE_LINE;
constexpr int MOST_WARPS = 16;
constexpr int MOST_CLUSTERED = 8;  // blocks in a cluster on every device that has clusters

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
    const __nv_bfloat16* x;      // [m, k]
    const unsigned char* tiles;  // [ceil(n / 16), ceil(k / 256), TILE_BYTES]
    const __nv_bfloat16* bias;   // [n], or null
    __nv_bfloat16* y;            // [m, n]
    float* partial;              // [splits, m, n], null for one split or for clusters
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

// The splits of a tile may form a cluster, in which the first one adds up: a barrier in two halves, and a store into its
// shared memory. What was stored before `arrive` is seen after `wait`.
__device__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

__device__ void store_in_first(float* own, float value) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, 0;\n"
        "st.shared::cluster.f32 [there], %1;\n"
        "}"
        :
        : "r"(unsigned(__cvta_generic_to_shared(own))), "f"(value)
        : "memory");
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

__device__ float finished(float sum, const __nv_bfloat16* bias, int row) {
    const float scaled = __fmul_rn(sum, 1.0f / TABLE_FACTOR);
    return bias ? __fadd_rn(scaled, __bfloat162float(bias[row])) : scaled;
}

// Adds up `count` lists of a tile's numbers, in order: number i of each.
template <int GROUPS>
__device__ float added(const float* lists, int count, int i) {
    float sum = lists[i];
    for (int w = 1; w < count; ++w) sum = __fadd_rn(sum, lists[w * GROUPS * 128 + i]);
    return sum;
}

// Adds up a tile's numbers from `count` warps or splits, and writes them: to y, or as those of one split.
template <int GROUPS>
__device__ void write_tile(const Arguments& a, const float* lists, int count, int tile, float* partial) {
    for (int i = threadIdx.x; i < GROUPS * 128; i += blockDim.x) {
        const float sum = added<GROUPS>(lists, count, i);
        const int lane = i >> 2 & 31, element = i & 3;
        const int row = tile * TILE_ROWS + (lane >> 2) + 8 * (element >> 1);
        const int column = 8 * (i >> 7) + 2 * (lane & 3) + (element & 1);  // row of x and y
        if (row >= a.n || column >= a.m) continue;
        if (partial)
            partial[(size_t(blockIdx.y) * a.m + column) * a.n + row] = sum;
        else
            a.y[size_t(column) * a.n + row] = __float2bfloat16_rn(finished(sum, a.bias, row));
    }
}

// GROUPS of 8 rows of x; DEPTH tiles are on their way to a warp while it multiplies another. CLUSTERED: the splits are a
// cluster and y is finished here; its first block adds up a tile while all multiply the next one.
template <int GROUPS, int DEPTH, typename Scale, bool CLUSTERED>
__global__ void __launch_bounds__(32 * MOST_WARPS, 1) nf4_rows(const Arguments a) {
    extern __shared__ __align__(16) unsigned char table[];
    float* sums = reinterpret_cast<float*>(table + TABLE_BYTES);  // two of [warps, GROUPS, 32 lanes, 4]
    float* joined = sums + 2 * (blockDim.x >> 5) * GROUPS * 128;  // two of [splits, GROUPS, 32 lanes, 4]
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int slices = (a.k + SLICE - 1) / SLICE, slice = blockIdx.y * warps + warp;
    const int tiles = (a.n + TILE_ROWS - 1) / TILE_ROWS, stride = gridDim.x;
    const bool works = slice < slices;
    const unsigned char* mine = a.tiles + size_t(slice) * TILE_BYTES<Scale>;

    Chunk<Scale> ring[DEPTH][CHUNKS] = {};
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
        const int tile = blockIdx.x + d * stride;
        if (!works || tile >= tiles) continue;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) ring[d][c].read(mine + size_t(tile) * slices * TILE_BYTES<Scale>, c, lane);
    }
    fill_table(table);
    if (CLUSTERED) cluster_arrive();  // waited for before the first store into another block: it must have begun
    let_next_begin();
    wait_for_previous();

    unsigned x[GROUPS][CHUNKS][8] = {};
#pragma unroll
    for (int j = 0; j < GROUPS; ++j) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const int column = 8 * j + (lane >> 2), begin = slice * SLICE + c * BLOCK;
            if (!works || column >= a.m || begin >= a.k) continue;
            const uint4* at = reinterpret_cast<const uint4*>(a.x + size_t(column) * a.k + begin + 16 * (lane & 3));
            const uint4 low = fresh(at), high = fresh(at + 1);
            const unsigned words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int i = 0; i < 8; ++i) x[j][c][i] = words[i];
        }
    }
    __syncthreads();

    int parity = 0, before = -1;
    for (int first = blockIdx.x; first < tiles; first += DEPTH * stride) {
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const int tile = first + d * stride, next = tile + DEPTH * stride;
            if (tile >= tiles) break;
            const bool more = works && next < tiles;
            const unsigned char* following = mine + size_t(next) * slices * TILE_BYTES<Scale>;
            float total[GROUPS][4] = {};
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                float sum[GROUPS][4] = {};
                const uint4 codes = ring[d][c].codes;
                const float2 scale = ring[d][c].pair.scales();
                multiply_step<0>(sum, table, codes, 4 * lane, x, c);
                multiply_step<1>(sum, table, codes, 4 * lane, x, c);
                multiply_step<2>(sum, table, codes, 4 * lane, x, c);
                multiply_step<3>(sum, table, codes, 4 * lane, x, c);
                if (more) ring[d][c].read(following, c, lane);
#pragma unroll
                for (int j = 0; j < GROUPS; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        total[j][e] = __fmaf_rn(e < 2 ? scale.x : scale.y, sum[j][e], total[j][e]);
                }
            }
            float* here = sums + parity * warps * GROUPS * 128;
#pragma unroll
            for (int j = 0; j < GROUPS; ++j)
                reinterpret_cast<float4*>(here)[(warp * GROUPS + j) * 32 + lane] =
                    make_float4(total[j][0], total[j][1], total[j][2], total[j][3]);
            // One barrier a tile is enough: who writes these sums again has passed the next tile's barrier, and so
            // has everyone who reads them now.
            __syncthreads();
            if (CLUSTERED) {
                float* lists = joined + parity * gridDim.y * GROUPS * 128;
                const float* earlier = joined + (parity ^ 1) * gridDim.y * GROUPS * 128;
                cluster_wait();
                if (blockIdx.y == 0 && before >= 0) write_tile<GROUPS>(a, earlier, gridDim.y, before, nullptr);
                for (int i = threadIdx.x; i < GROUPS * 128; i += blockDim.x)
                    store_in_first(lists + blockIdx.y * GROUPS * 128 + i, added<GROUPS>(here, warps, i));
                cluster_arrive();
                before = tile;
            } else {
                write_tile<GROUPS>(a, here, warps, tile, a.partial);
            }
            parity ^= 1;
        }
    }
    if (CLUSTERED) {
        cluster_wait();
        const float* last = joined + (parity ^ 1) * gridDim.y * GROUPS * 128;
        if (blockIdx.y == 0) write_tile<GROUPS>(a, last, gridDim.y, before, nullptr);
    }
}

// Adds up the splits, in order. One thread for each number of y.
__global__ void nf4_join(const Arguments a, int splits) {
    let_next_begin();
    wait_for_previous();
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= a.n) return;
    const size_t at = size_t(blockIdx.y) * a.n + row;
    float sum = __ldcg(a.partial + at);
    for (int s = 1; s < splits; ++s) sum = __fadd_rn(sum, __ldcg(a.partial + size_t(s) * a.m * a.n + at));
    a.y[at] = __float2bfloat16_rn(finished(sum, a.bias, row));
}

// The full weight [n, k] in bfloat16, as bitsandbytes dequantises it: float32 code times float32 scale, rounded once.
__global__ void nf4_expand(const unsigned char* tiles, const float* absmax, __nv_bfloat16* weight, int n, int k,
                           int tile_bytes) {
    __shared__ float codes[16][32];
    const int lane = threadIdx.x & 31, chunk = threadIdx.x >> 5, begin = blockIdx.y * SLICE + chunk * BLOCK;
    for (int i = threadIdx.x; i < 16 * 32; i += blockDim.x) codes[i >> 5][i & 31] = CODES[i >> 5];
    __syncthreads();
    if (begin >= k) return;
    const unsigned char* tile = tiles + (size_t(blockIdx.x) * gridDim.y + blockIdx.y) * tile_bytes;
    const uint4 both = stream(reinterpret_cast<const uint4*>(tile + chunk * CHUNK_BYTES) + lane);
    const unsigned words[2][2] = {{both.x, both.y}, {both.z, both.w}};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = blockIdx.x * TILE_ROWS + (lane >> 2) + 8 * half;
        if (row >= n) continue;
        const float scale = absmax[size_t(row) * (k / BLOCK) + begin / BLOCK];
        __nv_bfloat162 out[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const unsigned byte = words[half][i >> 2] >> 8 * (i & 3) & 255;
            out[i] = __floats2bfloat162_rn(__fmul_rn(codes[byte >> 4][lane], scale),
                                           __fmul_rn(codes[byte & 15][lane], scale));
        }
        uint4* at = reinterpret_cast<uint4*>(weight + size_t(row) * k + begin + 16 * (lane & 3));
        at[0] = reinterpret_cast<const uint4*>(out)[0];
        at[1] = reinterpret_cast<const uint4*>(out)[1];
    }
}

constexpr int depth(int groups) { return groups == 1 ? 2 : 1; }  // two rows of x in registers leave room for one tile

constexpr size_t shared_bytes(int groups, int warps, int clustered) {
    return TABLE_BYTES + size_t(2) * (warps + clustered) * groups * 512;
}

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, bool overlap, int clustered,
                   cudaStream_t on, Parameters... values) {
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = overlap;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {1, unsigned(std::max(1, clustered)), 1};
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = on;
    config.attrs = overlap ? attributes : attributes + 1;
    config.numAttrs = int(overlap) + int(clustered > 0);
    if (clustered) {
        int resident = 0;
        const cudaError_t error = cudaOccupancyMaxActiveClusters(&resident, kernel, &config);
        if (error != cudaSuccess) return error;
        config.gridDim.x = std::min<int>(grid.x, std::max(1, resident));
    }
    return cudaLaunchKernelEx(&config, kernel, values...);
}

template <int GROUPS, typename Scale>
cudaError_t launch_rows(const Arguments& a, int warps, int splits, int processors, bool overlap, cudaStream_t on) {
    const int tiles = (a.n + TILE_ROWS - 1) / TILE_ROWS;
    if (splits > 1 && !a.partial)
        return launch(nf4_rows<GROUPS, depth(GROUPS), Scale, true>, dim3(tiles, splits), 32 * warps,
                      shared_bytes(GROUPS, warps, splits), overlap, splits, on, a);
    const auto kernel = nf4_rows<GROUPS, depth(GROUPS), Scale, false>;
    const size_t shared = shared_bytes(GROUPS, warps, 0);
    int resident = 0;
    cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, 32 * warps, shared);
    if (error != cudaSuccess) return error;
    const int blocks = std::min(tiles, std::max(1, processors * resident / splits));
    error = launch(kernel, dim3(blocks, splits), 32 * warps, shared, overlap, 0, on, a);
    if (error != cudaSuccess || splits == 1) return error;
    return launch(nf4_join, dim3((a.n + 255) / 256, a.m), 256, 0, overlap, 0, on, a, splits);
}

template <int GROUPS, typename Scale>
cudaError_t allow_shared(int capability) {
    const auto name = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaError_t error = cudaFuncSetAttribute(nf4_rows<GROUPS, depth(GROUPS), Scale, false>, name,
                                                   int(shared_bytes(GROUPS, MOST_WARPS, 0)));
    if (error != cudaSuccess || capability < 9) return error;
    return cudaFuncSetAttribute(nf4_rows<GROUPS, depth(GROUPS), Scale, true>, name,
                                int(shared_bytes(GROUPS, MOST_WARPS, MOST_CLUSTERED)));
}

}  // namespace

extern "C" {

// Once for each device, before the first launch on it (and before any capture); `capability` is the major number.
int nf4_prepare(int capability) {
    const cudaError_t errors[] = {allow_shared<1, __half>(capability), allow_shared<2, __half>(capability),
                                  allow_shared<1, float>(capability), allow_shared<2, float>(capability)};
    for (const cudaError_t error : errors)
        if (error != cudaSuccess) return error;
    return cudaSuccess;
}

// Scales are of half precision or float32 (scale_bytes 2 or 4); m is 1 to 16; k a multiple of 64; x and tiles begin at
// multiples of 16 bytes; warps * splits slices of 256 cover k. Where splits > 1, partial is float32[splits, m, n], or null:
// then the splits are clusters (from 9.0 on, up to 8).
int nf4_multiply(const void* x, const void* tiles, const void* bias, void* y, void* partial, int m, int n, int k,
                 int scale_bytes, int warps, int splits, int processors, int overlap, void* stream) {
    const Arguments a{static_cast<const __nv_bfloat16*>(x),    static_cast<const unsigned char*>(tiles),
                      static_cast<const __nv_bfloat16*>(bias), static_cast<__nv_bfloat16*>(y),
                      static_cast<float*>(partial),            m,
                      n,                                       k};
    const auto on = static_cast<cudaStream_t>(stream);
    if (scale_bytes == 2)
        return m <= 8 ? launch_rows<1, __half>(a, warps, splits, processors, overlap, on)
                      : launch_rows<2, __half>(a, warps, splits, processors, overlap, on);
    return m <= 8 ? launch_rows<1, float>(a, warps, splits, processors, overlap, on)
                  : launch_rows<2, float>(a, warps, splits, processors, overlap, on);
}

int nf4_expand_weight(const void* tiles, const void* absmax, void* weight, int n, int k, int tile_bytes, void* stream) {
    const dim3 grid((n + TILE_ROWS - 1) / TILE_ROWS, (k + SLICE - 1) / SLICE);
    return launch(nf4_expand, grid, 32 * CHUNKS, 0, false, 0, static_cast<cudaStream_t>(stream),
                  static_cast<const unsigned char*>(tiles), static_cast<const float*>(absmax),
                  static_cast<__nv_bfloat16*>(weight), n, k, tile_bytes);
}

const char* nf4_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
}
