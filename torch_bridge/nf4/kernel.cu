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

#include <algorithm>

#include "lanes.cuh"

namespace {

// Numbers in shared memory for the factors of rows, and the sums of squares of warps.
template <int GROUPS, bool NORMED>
constexpr int FACTORS = NORMED ? 8 * GROUPS * (1 + MOST_WARPS) : 0;

// Adds up a tile's numbers of all warps, in order, and writes them: to y, or as those of one split.
template <int GROUPS, bool NORMED>
__device__ void write_tile(const Arguments& a, const float* lists, const float* factors, int warps, int tile) {
    for (int i = threadIdx.x; i < GROUPS * 128; i += blockDim.x) {
        float sum = lists[i];
        for (int w = 1; w < warps; ++w) sum = __fadd_rn(sum, lists[w * GROUPS * 128 + i]);
        const int lane = i >> 2 & 31, element = i & 3;
        const int row = tile * TILE_ROWS + (lane >> 2) + 8 * (element >> 1);
        const int column = 8 * (i >> 7) + 2 * (lane & 3) + (element & 1);  // row of x and y
        if (row >= a.n || column >= a.m) continue;
        if (a.partial)
            a.partial[(size_t(blockIdx.y) * a.m + column) * a.n + row] = sum;
        else
            a.y[size_t(column) * a.n + row] = finished(a, sum, NORMED ? factors[column] : 1.0f, row, column);
    }
}

// One over the root of each row's mean square, from the sums of squares of all warps, [warps, rows], in order.
__device__ void write_factors(const Arguments& a, float* factors, const float* squares, int warps, int rows) {
    if (threadIdx.x >= rows) return;
    float sum = squares[threadIdx.x];
    for (int w = 1; w < warps; ++w) sum = __fadd_rn(sum, squares[w * rows + threadIdx.x]);
    factors[threadIdx.x] = rsqrtf(__fadd_rn(__fdiv_rn(sum, float(a.k)), a.epsilon));
}

// GROUPS of 8 rows of x; DEPTH tiles are on their way to a warp while it multiplies another. NORMED: of x normalised,
// by x times the norm's weight, and the result times one number a row; a block of threads has all columns then.
template <int GROUPS, int DEPTH, bool NORMED, typename Scale>
__global__ void __launch_bounds__(32 * MOST_WARPS, 1) nf4_matmul_rows(const Arguments a) {
    extern __shared__ __align__(16) unsigned char table[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    float* factors = reinterpret_cast<float*>(table + TABLE_BYTES);  // [8 * GROUPS], and [warps, 8 * GROUPS]
    float* sums = factors + FACTORS<GROUPS, NORMED>;                  // two of [warps, GROUPS, 32 lanes, 4]
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
    let_next_begin();
    wait_for_previous();

    unsigned x[GROUPS][CHUNKS][8] = {};
#pragma unroll
    for (int j = 0; j < GROUPS; ++j) {
        float squares = 0;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            const int column = 8 * j + (lane >> 2), begin = slice * SLICE + c * BLOCK;
            if (!works || column >= a.m || begin >= a.k) continue;
            const int at = begin + 16 * (lane & 3);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint4 words = fresh(reinterpret_cast<const uint4*>(a.x + size_t(column) * a.k + at) + half);
                if constexpr (NORMED)
                    words = weighted(words, fresh(reinterpret_cast<const uint4*>(a.norm + at) + half), squares);
                x[j][c][4 * half] = words.x, x[j][c][4 * half + 1] = words.y;
                x[j][c][4 * half + 2] = words.z, x[j][c][4 * half + 3] = words.w;
            }
        }
        if constexpr (NORMED) {
            squares = __fadd_rn(squares, __shfl_xor_sync(~0u, squares, 1));
            squares = __fadd_rn(squares, __shfl_xor_sync(~0u, squares, 2));
            if (!(lane & 3)) factors[8 * GROUPS * (1 + warp) + 8 * j + (lane >> 2)] = squares;
        }
    }
    __syncthreads();
    // Seen by all who write: the barrier of the first tile lies between.
    if constexpr (NORMED) write_factors(a, factors, factors + 8 * GROUPS, warps, 8 * GROUPS);

    int parity = 0;
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
            write_tile<GROUPS, NORMED>(a, here, factors, warps, tile);
            parity ^= 1;
        }
    }
}

// Adds up the splits, in order. One thread for each number of y.
__global__ void nf4_matmul_sum(const Arguments a, int splits) {
    let_next_begin();
    wait_for_previous();
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= a.n) return;
    const size_t at = size_t(blockIdx.y) * a.n + row;
    float sum = __ldcg(a.partial + at);
    for (int s = 1; s < splits; ++s) sum = __fadd_rn(sum, __ldcg(a.partial + size_t(s) * a.m * a.n + at));
    a.y[at] = finished(a, sum, 1.0f, row, blockIdx.y);
}

// The full weight [n, k] in bfloat16, as bitsandbytes dequantises it: float32 code times float32 scale, rounded once.
__global__ void nf4_matmul_expand(const unsigned char* tiles, const float* absmax, __nv_bfloat16* weight, int n, int k,
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

template <int GROUPS, bool NORMED>
constexpr size_t shared_bytes(int warps) {
    return TABLE_BYTES + sizeof(float) * FACTORS<GROUPS, NORMED> + size_t(2) * warps * GROUPS * 512;
}

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared, bool overlap, cudaStream_t on,
                   Parameters... values) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = overlap;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = on;
    config.attrs = &attribute;
    config.numAttrs = overlap;
    return cudaLaunchKernelEx(&config, kernel, values...);
}

template <int GROUPS, bool NORMED, typename Scale>
cudaError_t launch_rows(const Arguments& a, int warps, int splits, int processors, bool overlap, cudaStream_t on) {
    const auto kernel = nf4_matmul_rows<GROUPS, depth(GROUPS), NORMED, Scale>;
    const size_t shared = shared_bytes<GROUPS, NORMED>(warps);
    int resident = 0;
    cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, 32 * warps, shared);
    if (error != cudaSuccess) return error;
    const int tiles = (a.n + TILE_ROWS - 1) / TILE_ROWS;
    const int blocks = std::min(tiles, std::max(1, processors * resident / splits));
    error = launch(kernel, dim3(blocks, splits), 32 * warps, shared, overlap, on, a);
    if (error != cudaSuccess || splits == 1) return error;
    return launch(nf4_matmul_sum, dim3((a.n + 255) / 256, a.m), 256, 0, overlap, on, a, splits);
}

template <typename Scale>
cudaError_t launch_any(const Arguments& a, int warps, int splits, int processors, bool overlap, cudaStream_t on) {
    if (a.norm)
        return a.m <= 8 ? launch_rows<1, true, Scale>(a, warps, splits, processors, overlap, on)
                        : launch_rows<2, true, Scale>(a, warps, splits, processors, overlap, on);
    return a.m <= 8 ? launch_rows<1, false, Scale>(a, warps, splits, processors, overlap, on)
                    : launch_rows<2, false, Scale>(a, warps, splits, processors, overlap, on);
}

template <int GROUPS, bool NORMED, typename Scale>
cudaError_t allow_shared() {
    return cudaFuncSetAttribute(nf4_matmul_rows<GROUPS, depth(GROUPS), NORMED, Scale>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                int(shared_bytes<GROUPS, NORMED>(MOST_WARPS)));
}

template <typename Scale>
cudaError_t allow_all_shared() {
    const cudaError_t errors[] = {allow_shared<1, false, Scale>(), allow_shared<2, false, Scale>(),
                                  allow_shared<1, true, Scale>(), allow_shared<2, true, Scale>()};
    for (const cudaError_t error : errors)
        if (error != cudaSuccess) return error;
    return cudaSuccess;
}

}  // namespace

extern "C" {

// Once for each device, before the first launch on it (and before any capture).
int nf4_prepare() {
    const cudaError_t errors[] = {allow_all_shared<__half>(), allow_all_shared<float>()};
    for (const cudaError_t error : errors)
        if (error != cudaSuccess) return error;
    cudaFuncAttributes asked;  // asking loads a kernel, which a capture might not allow
    const cudaError_t error = cudaFuncGetAttributes(&asked, nf4_matmul_sum);
    return error != cudaSuccess ? error : cudaFuncGetAttributes(&asked, nf4_matmul_expand);
}

// y = norm(x) W^T + bias + residual. Scales are of half precision or float32 (scale_bytes 2 or 4); m is 1 to 16; k a
// multiple of 64; x, norm and tiles begin at multiples of 16 bytes; warps * splits slices of 256 cover k. Where
// splits > 1, partial is float32[splits, m, n] and norm null, else partial is null.
int nf4_multiply(const void* x, const void* tiles, const void* bias, const void* residual, const void* norm, void* y,
                 void* partial, float epsilon, int m, int n, int k, int scale_bytes, int warps, int splits,
                 int processors, int overlap, void* stream) {
    const Arguments a{static_cast<const __nv_bfloat16*>(x),        static_cast<const unsigned char*>(tiles),
                      static_cast<const __nv_bfloat16*>(bias),     static_cast<const __nv_bfloat16*>(residual),
                      static_cast<const __nv_bfloat16*>(norm),     static_cast<__nv_bfloat16*>(y),
                      static_cast<float*>(partial),                epsilon,
                      m, n, k};
    const auto on = static_cast<cudaStream_t>(stream);
    return scale_bytes == 2 ? launch_any<__half>(a, warps, splits, processors, overlap, on)
                            : launch_any<float>(a, warps, splits, processors, overlap, on);
}

int nf4_expand_weight(const void* tiles, const void* absmax, void* weight, int n, int k, int tile_bytes, void* stream) {
    const dim3 grid((n + TILE_ROWS - 1) / TILE_ROWS, (k + SLICE - 1) / SLICE);
    return launch(nf4_matmul_expand, grid, 32 * CHUNKS, 0, false, static_cast<cudaStream_t>(stream),
                  static_cast<const unsigned char*>(tiles), static_cast<const float*>(absmax),
                  static_cast<__nv_bfloat16*>(weight), n, k, tile_bytes);
}

const char* nf4_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
}
