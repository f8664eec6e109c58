/* T steps of Sm on a CPU (paper, Equation 8): G <- alpha A G + (1 - alpha) U, and, for a trainable alpha,
 * K <- A G_before - U + alpha A K, the derivative of G with respect to alpha.
 *
 * U, G, K are (rows, columns), row-major. A is a neighbour table: row i has `degree` pairs (index, weight) and a self
 * weight; padding has weight 0. Columns are independent of each other, so a block of 64 bytes of columns is copied out and
 * goes through all T steps while it stays in cache: memory is read once, not T times. Blocks are shared out to threads;
 * no sum depends on the number of threads, so neither does any bit of the result.
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

#define REAL float
#define NAME(x) x##_f32
#include "sm_kernel.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include "sm_kernel.c"
#else

/* one block of columns of one row; the compiler splits it where the machine's registers are narrower */
typedef REAL NAME(lanes) __attribute__((vector_size(64), aligned(sizeof(REAL))));
#define BLOCK ((int64_t)(64 / sizeof(REAL)))

/* out = offset_scale * offset + scale * A in; and, if given, extra += A in - offset; on one block of columns */
CLONES static void NAME(spread)(NAME(lanes) *restrict out, const NAME(lanes) *restrict in,
                                const NAME(lanes) *restrict offset, REAL offset_scale, REAL scale,
                                NAME(lanes) *restrict extra, const int32_t *restrict index,
                                const REAL *restrict weight, const REAL *restrict self_weight, int64_t rows,
                                int64_t degree) {
    for (int64_t i = 0; i < rows; i++) {
        NAME(lanes) sum = in[i] * self_weight[i];
        for (int64_t k = 0; k < degree; k++) sum += in[index[i * degree + k]] * weight[i * degree + k];
        /* `extra` comes in as alpha A K of the same step and leaves as K */
        if (extra) extra[i] += sum - offset[i];
        out[i] = offset[i] * offset_scale + sum * scale;
    }
}

static void NAME(copy_in)(NAME(lanes) *out, const REAL *matrix, int64_t rows, int64_t columns, int64_t first, int64_t width) {
    REAL *block = (REAL *)out;
    for (int64_t i = 0; i < rows; i++) {
        memcpy(block + i * BLOCK, matrix + i * columns + first, (size_t)width * sizeof(REAL));
        for (int64_t c = width; c < BLOCK; c++) block[i * BLOCK + c] = 0;
    }
}

static void NAME(copy_out)(REAL *matrix, const NAME(lanes) *in, int64_t rows, int64_t columns, int64_t first, int64_t width) {
    const REAL *block = (const REAL *)in;
    for (int64_t i = 0; i < rows; i++)
        memcpy(matrix + i * columns + first, block + i * BLOCK, (size_t)width * sizeof(REAL));
}

/* g (rows, columns) receives the result; k may be NULL, else it receives dG/dalpha. */
int NAME(sm_steps)(const REAL *u, REAL *g, REAL *k, const int32_t *index, const REAL *weight, const REAL *self_weight,
                   int64_t rows, int64_t columns, int64_t degree, double alpha_in, int64_t steps, int threads) {
    const REAL alpha = (REAL)alpha_in;
    const int64_t blocks = (columns + BLOCK - 1) / BLOCK, size = rows * (int64_t)sizeof(NAME(lanes));
    int failed = 0;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(| : failed)
#endif
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = b * BLOCK, width = columns - first < BLOCK ? columns - first : BLOCK;
        NAME(lanes) *memory = aligned_alloc(64, (size_t)size * (k ? 5 : 3));
        if (!memory) {
            failed = 1;
            continue;
        }
        NAME(lanes) *base = memory, *now = base + rows, *next = now + rows;
        NAME(lanes) *slope = k ? next + rows : NULL, *slope_next = k ? slope + rows : NULL;
        NAME(copy_in)(base, u, rows, columns, first, width);
        memcpy(now, base, (size_t)size);
        if (k) memset(slope, 0, (size_t)size);
        for (int64_t t = 0; t < steps; t++) {
            NAME(lanes) *swap;
            if (k) {
                NAME(spread)(slope_next, slope, base, 0, alpha, NULL, index, weight, self_weight, rows, degree);
                swap = slope, slope = slope_next, slope_next = swap;
            }
            NAME(spread)(next, now, base, 1 - alpha, alpha, slope, index, weight, self_weight, rows, degree);
            swap = now, now = next, next = swap;
        }
        NAME(copy_out)(g, now, rows, columns, first, width);
        if (k) NAME(copy_out)(k, slope, rows, columns, first, width);
        free(memory);
    }
    return failed;
}
#undef BLOCK
#endif
