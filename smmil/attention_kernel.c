/* Exact softmax attention of packed bags on a CPU, head by head, with dropout and a bias by kind of pair, and its
 * gradients: out = (mask * softmax(s q k^T + bias)) v, smmil/attention.py.
 *
 * Nothing of size n x n is stored. The forward pass keeps the running maximum and sum of each query (Milakov &
 * Gimelshein, arXiv 1805.02867) and leaves the logarithm of the sum; the backward pass makes the weights again from it,
 * tile by tile (Dao et al., arXiv 2205.14135), with G the gradient of out, P the weights and A what dropout left:
 *   dV += A^T G,  dL = A (G V^T) - P rowsum(G out),  dQ = s dL K,  dK += s dL^T Q,  dtable[kind] += dL.
 * Dropout is a hash of (seed, bag, head, query, key), so that both passes leave out the same.
 *
 * q, k, v, out are (rows, heads * width) with a stride between rows; bag b has rows bounds[b]..bounds[b+1]. A bag's
 * kinds are (n, ld) bytes, the table is (heads, kinds). Pairs of bag and head are shared out to threads; no sum depends
 * on how. Widths of vectors: as in sm_kernel.c. Functions return 0, or 1 when memory ran out.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define PASTED(x, bytes) x##_##bytes
#define EXPANDED(...) PASTED(__VA_ARGS__)
#define NAME(x) EXPANDED(x, BYTES)

/* keys of a tile, queries that meet it while it is in cache, and the most kinds of pairs */
#define TILE 256
#define GROUP 64
#define MOST_KINDS 8

/* What both passes are told. */
typedef struct {
    const float *q, *k, *v, *out, *table;
    const uint8_t *const *kinds;
    const int64_t *bounds, *kinds_stride;
    int64_t q_stride, k_stride, v_stride, out_stride, bags, heads, width, value_width, n_kinds;
    uint64_t seed;
    /* dropout: hashes below it are left out; what is left is multiplied by keep */
    uint32_t below;
    float scale, keep;
} attention_job;

/* Where the backward pass writes: dq, dk, dv (rows, heads * width) without gaps, dtable (bags, heads, kinds). */
typedef struct {
    const float *grad;
    int64_t grad_stride;
    float *dq, *dk, *dv, *dtable;
} attention_gradients;

/* a bijection of 64 bits whose every output bit hangs on every input bit (Stafford's variant 13, as in SplitMix64) */
INLINE uint64_t mixed(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

INLINE int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static float *numbers(int64_t count) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, (size_t)count * sizeof(float)) ? NULL : memory;
}

/* what every processor of its kind has */
#define BYTES 16
#define ROWS 4
#define TARGET
#include "attention_tiles.c"

#ifdef __x86_64__
#undef BYTES
#undef ROWS
#undef TARGET
#define BYTES 32
#define ROWS 4
#define TARGET __attribute__((target("avx2,fma")))
#include "attention_tiles.c"

#undef BYTES
#undef ROWS
#undef TARGET
#define BYTES 64
#define ROWS 8
#define TARGET __attribute__((target("avx512f")))
#include "attention_tiles.c"
#endif
