/* T steps of Sm on a CPU (paper, Equation 8): G <- alpha A G + (1 - alpha) U, and, for a trainable alpha,
 * K <- A G_before - U + alpha A K, the derivative of G with respect to alpha.
 *
 * U, G, K are (rows, columns), row-major. A is a neighbour table: row i has `degree` pairs (index, weight) and a self
 * weight; padding has weight 0. Columns are independent of each other, so a block of columns is copied out and goes
 * through all T steps. Within a block the steps follow each other at the distance of the farthest neighbour (`reach`
 * rows): a step may compute row i as soon as the step before has row i + reach, so that on a lattice the rows in
 * between stay in cache for all steps and memory is read once, not T times. Blocks are shared out to threads; no sum
 * depends on the order of rows, on blocks or on the number of threads, so neither does any bit of the result.
 *
 * This file includes itself once per number type. Each function returns 0, or 1 when memory ran out.
 */
#ifndef REAL
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
/* one build serves every x86 processor: the loader picks the widest version the machine has */
#define CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))
/* rows that the first step is ahead of what the window of all steps needs */
#define TILE 256

#define REAL float
#define NAME(x) x##_f32
#include "sm_kernel.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include "sm_kernel.c"
#else

/* 64 bytes of columns of one row; the compiler splits them where the machine's registers are narrower */
typedef REAL NAME(lanes) __attribute__((vector_size(64), aligned(sizeof(REAL)), may_alias));
#define LANES ((int64_t)(64 / sizeof(REAL)))

/* Rows first..last of one step on a block of `wide` lanes:
 * out = offset_scale * offset + scale * A in; and, if given, extra += A in - offset. */
INLINE void NAME(rows)(NAME(lanes) *restrict out, const NAME(lanes) *restrict in, const NAME(lanes) *restrict offset,
                       REAL offset_scale, REAL scale, NAME(lanes) *restrict extra, const int32_t *restrict index,
                       const REAL *restrict weight, const REAL *restrict self_weight, int64_t first, int64_t last,
                       int64_t degree, int64_t wide) {
    for (int64_t i = first; i < last; i++) {
        NAME(lanes) sum[2];
        for (int64_t w = 0; w < wide; w++) sum[w] = in[i * wide + w] * self_weight[i];
        for (int64_t k = 0; k < degree; k++) {
            const NAME(lanes) *neighbour = in + index[i * degree + k] * wide;
            const REAL factor = weight[i * degree + k];
            for (int64_t w = 0; w < wide; w++) sum[w] += neighbour[w] * factor;
        }
        for (int64_t w = 0, at = i * wide; w < wide; w++, at++) {
            /* `extra` comes in as alpha A K of the same step and leaves as K */
            if (extra) extra[at] += sum[w] - offset[at];
            out[at] = offset[at] * offset_scale + sum[w] * scale;
        }
    }
}

/* the same; the two counts become constants, which keeps `sum` in registers */
CLONES static void NAME(spread)(NAME(lanes) *restrict out, const NAME(lanes) *restrict in,
                                const NAME(lanes) *restrict offset, REAL offset_scale, REAL scale,
                                NAME(lanes) *restrict extra, const int32_t *restrict index,
                                const REAL *restrict weight, const REAL *restrict self_weight, int64_t first,
                                int64_t last, int64_t degree, int64_t wide) {
#define ROWS(degree, wide) \
    NAME(rows)(out, in, offset, offset_scale, scale, extra, index, weight, self_weight, first, last, degree, wide)
    if (wide == 2) {
        if (degree == 8) ROWS(8, 2);
        else ROWS(degree, 2);
    } else {
        if (degree == 8) ROWS(8, 1);
        else ROWS(degree, 1);
    }
#undef ROWS
}

/* rows first..last of a block from and to the matrix; whole blocks move in registers, the last columns one by one */
CLONES static void NAME(copy_in)(NAME(lanes) *restrict out, const REAL *restrict matrix, int64_t first, int64_t last,
                                 int64_t columns, int64_t width, int64_t wide) {
    for (int64_t i = first; i < last; i++) {
        const REAL *from = matrix + i * columns;
        NAME(lanes) *row = out + i * wide;
        if (width == 2 * LANES) {
            row[0] = *(const NAME(lanes) *)from, row[1] = *(const NAME(lanes) *)(from + LANES);
        } else if (width == LANES) {
            row[0] = *(const NAME(lanes) *)from;
        } else {
            memset(row, 0, (size_t)wide * sizeof(NAME(lanes)));
            memcpy(row, from, (size_t)width * sizeof(REAL));
        }
    }
}

CLONES static void NAME(copy_out)(REAL *restrict matrix, const NAME(lanes) *restrict in, int64_t first, int64_t last,
                                  int64_t columns, int64_t width, int64_t wide) {
    for (int64_t i = first; i < last; i++) {
        REAL *to = matrix + i * columns;
        const NAME(lanes) *row = in + i * wide;
        if (width == 2 * LANES) {
            *(NAME(lanes) *)to = row[0], *(NAME(lanes) *)(to + LANES) = row[1];
        } else if (width == LANES) {
            *(NAME(lanes) *)to = row[0];
        } else {
            memcpy(to, row, (size_t)width * sizeof(REAL));
        }
    }
}

/* All steps on the columns u..u + width of one block. `memory` holds U, two G and, with k, two K; `done` one count per
 * step. */
static void NAME(block)(const REAL *u, REAL *g, REAL *k, const int32_t *index, const REAL *weight,
                        const REAL *self_weight, int64_t rows, int64_t columns, int64_t width, int64_t degree,
                        int64_t wide, REAL alpha, int64_t steps, int64_t reach, NAME(lanes) *memory, int64_t *done) {
    const int64_t size = rows * wide;
    NAME(lanes) *base = memory, *value[2] = {base + size, base + 2 * size}, *slope[2] = {0, 0};
    if (k) slope[0] = base + 3 * size, slope[1] = base + 4 * size;
    int64_t copied = 0;
    memset(done, 0, (size_t)steps * sizeof(int64_t));
    while (done[steps - 1] < rows) {
        const int64_t ahead = copied + TILE < rows ? copied + TILE : rows;
        NAME(copy_in)(base, u, copied, ahead, columns, width, wide);
        if (k) memset(slope[0] + copied * wide, 0, (size_t)((ahead - copied) * wide) * sizeof(NAME(lanes)));
        copied = ahead;
        for (int64_t t = 0, before = copied; t < steps; t++) {
            const int64_t first = done[t], last = before == rows ? rows : before - reach;
            if (last <= first) break;
            const NAME(lanes) *in = t ? value[t % 2] : base;
            NAME(lanes) *next = value[(t + 1) % 2], *slope_next = slope[(t + 1) % 2];
            if (k)
                NAME(spread)(slope_next, slope[t % 2], base, 0, alpha, NULL, index, weight, self_weight, first, last,
                             degree, wide);
            NAME(spread)(next, in, base, 1 - alpha, alpha, slope_next, index, weight, self_weight, first, last, degree,
                         wide);
            if (t == steps - 1) {
                NAME(copy_out)(g, next, first, last, columns, width, wide);
                if (k) NAME(copy_out)(k, slope_next, first, last, columns, width, wide);
            }
            done[t] = before = last;
        }
    }
}

/* g (rows, columns) receives the result; k may be NULL, else it receives dG/dalpha; steps >= 1. */
int NAME(sm_steps)(const REAL *u, REAL *g, REAL *k, const int32_t *index, const REAL *weight, const REAL *self_weight,
                   int64_t rows, int64_t columns, int64_t degree, double alpha_in, int64_t steps, int threads) {
    /* two lanes share the reading of indices and weights; a narrow matrix would only compute more padding */
    const int64_t wide = columns > LANES ? 2 : 1, block = wide * LANES, blocks = (columns + block - 1) / block;
    int64_t reach = 0;
    int failed = 0;
    (void)threads;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t n = i * degree; n < (i + 1) * degree; n++) {
            const int64_t distance = index[n] > i ? index[n] - i : i - index[n];
            reach = distance > reach ? distance : reach;
        }
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(| : failed)
#endif
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = b * block, left = columns - first, width = left < block ? left : block;
        /* the last block may be narrow */
        const int64_t lanes = width > LANES ? 2 : 1;
        NAME(lanes) *memory = aligned_alloc(64, (size_t)(rows * lanes * (k ? 5 : 3)) * sizeof(NAME(lanes)));
        int64_t *done = malloc((size_t)steps * sizeof(int64_t));
        if (memory && done)
            NAME(block)(u + first, g + first, k ? k + first : NULL, index, weight, self_weight, rows, columns, width,
                        degree, lanes, (REAL)alpha_in, steps, reach, memory, done);
        else
            failed = 1;
        free(memory);
        free(done);
    }
    return failed;
}
#undef LANES
#endif
