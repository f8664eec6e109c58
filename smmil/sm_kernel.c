/* T steps of Sm on a CPU (paper, Equation 8), G <- alpha A G + (1 - alpha) U, and, for a trainable alpha, their
 * gradients from one sweep over the powers Q(s) = A^s grad of the incoming gradient (A is symmetric):
 * dU = sum_s c(s) Q(s) and dalpha = sum_s d(s) <Q(s), U>, with the coefficients c of G(T) and d of dG(T)/dalpha as
 * polynomials in A.
 *
 * U, G, grad are (rows, columns), row-major. A is a neighbour table: row i has `degree` pairs (index, weight) and a self
 * weight; padding has weight 0. Columns are independent of each other, so a block of columns is copied out and goes
 * through all T steps. Within a block the steps follow each other at the distance of the farthest neighbour (`reach`
 * rows): a step may compute row i as soon as the step before has row i + reach, so that on a lattice the rows in
 * between stay in cache for all steps and memory is read once, not T times. Blocks are shared out to threads; no sum
 * depends on how, nor on the number of threads, so neither does any bit of the result.
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

/* A table and how a block of `wide` lanes goes through it. */
typedef struct {
    const int32_t *index;
    const REAL *weight, *self_weight;
    int64_t rows, columns, degree, steps, reach;
} NAME(job);

/* Rows first..last of one step on a block of `wide` lanes. Forward (`total` NULL):
 * out = offset_scale * offset + scale * A in. Powers: out = A in, total += scale * out, dot += <out, offset>. */
INLINE void NAME(rows)(NAME(lanes) *restrict out, const NAME(lanes) *restrict in, const NAME(lanes) *restrict offset,
                       REAL offset_scale, REAL scale, NAME(lanes) *restrict total, NAME(lanes) *restrict dot,
                       const int32_t *restrict index, const REAL *restrict weight, const REAL *restrict self_weight,
                       int64_t first, int64_t last, int64_t degree, int64_t wide) {
    NAME(lanes) product[2] = {{0}, {0}};
    for (int64_t i = first; i < last; i++) {
        NAME(lanes) sum[2];
        for (int64_t w = 0; w < wide; w++) sum[w] = in[i * wide + w] * self_weight[i];
        for (int64_t k = 0; k < degree; k++) {
            const NAME(lanes) *neighbour = in + index[i * degree + k] * wide;
            const REAL factor = weight[i * degree + k];
            for (int64_t w = 0; w < wide; w++) sum[w] += neighbour[w] * factor;
        }
        for (int64_t w = 0, at = i * wide; w < wide; w++, at++) {
            if (total) {
                out[at] = sum[w];
                total[at] += sum[w] * scale;
                product[w] += sum[w] * offset[at];
            } else {
                out[at] = offset[at] * offset_scale + sum[w] * scale;
            }
        }
    }
    if (dot)
        for (int64_t w = 0; w < wide; w++) dot[w] = product[w];
}

/* the same; degree, width and direction become constants, which keeps `sum` in registers */
CLONES static void NAME(spread)(NAME(lanes) *restrict out, const NAME(lanes) *restrict in,
                                const NAME(lanes) *restrict offset, REAL offset_scale, REAL scale,
                                NAME(lanes) *restrict total, NAME(lanes) *restrict dot, const NAME(job) *restrict job,
                                int64_t first, int64_t last, int64_t wide) {
#define ROWS(degree, wide, total, dot)                                                                       \
    NAME(rows)(out, in, offset, offset_scale, scale, total, dot, job->index, job->weight, job->self_weight, first, \
               last, degree, wide)
#define DEGREES(wide, total, dot)                    \
    if (job->degree == 8) ROWS(8, wide, total, dot); \
    else ROWS(job->degree, wide, total, dot)
    if (wide == 2 && total) {
        DEGREES(2, total, dot);
    } else if (wide == 2) {
        DEGREES(2, NULL, NULL);
    } else if (total) {
        DEGREES(1, total, dot);
    } else {
        DEGREES(1, NULL, NULL);
    }
#undef DEGREES
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

/* All steps on the columns from `u` on of one block. `memory` holds U and two G; `done` one count per step. */
static void NAME(forward)(const NAME(job) *job, const REAL *u, REAL *g, int64_t width, int64_t wide, REAL alpha,
                          NAME(lanes) *memory, int64_t *done) {
    const int64_t size = job->rows * wide;
    NAME(lanes) *base = memory, *value[2] = {base + size, base + 2 * size};
    for (int64_t copied = 0; done[job->steps - 1] < job->rows;) {
        const int64_t ahead = copied + TILE < job->rows ? copied + TILE : job->rows;
        NAME(copy_in)(base, u, copied, ahead, job->columns, width, wide);
        copied = ahead;
        for (int64_t t = 0, before = copied; t < job->steps; t++) {
            const int64_t first = done[t], last = before == job->rows ? job->rows : before - job->reach;
            if (last <= first) break;
            NAME(lanes) *next = value[(t + 1) % 2];
            NAME(spread)(next, t ? value[t % 2] : base, base, 1 - alpha, alpha, NULL, NULL, job, first, last, wide);
            if (t == job->steps - 1) NAME(copy_out)(g, next, first, last, job->columns, width, wide);
            done[t] = before = last;
        }
    }
}

static double NAME(added)(const NAME(lanes) *dot, int64_t wide) {
    double sum = 0;
    for (int64_t w = 0; w < wide; w++)
        for (int64_t lane = 0; lane < LANES; lane++) sum += (double)dot[w][lane];
    return sum;
}

/* The gradients on one block. `memory` holds U, dU and two Q; returns the block's part of dalpha. */
static double NAME(backward)(const NAME(job) *job, const REAL *grad, const REAL *u, REAL *grad_u, int64_t width,
                             int64_t wide, const double *c, const double *d, NAME(lanes) *memory, int64_t *done) {
    const int64_t size = job->rows * wide;
    NAME(lanes) *base = memory, *total = base + size, *power[2] = {base + 2 * size, base + 3 * size};
    NAME(lanes) dot[2];
    double slope = 0;
    for (int64_t copied = 0; done[job->steps - 1] < job->rows;) {
        const int64_t ahead = copied + TILE < job->rows ? copied + TILE : job->rows;
        NAME(copy_in)(base, u, copied, ahead, job->columns, width, wide);
        NAME(copy_in)(power[0], grad, copied, ahead, job->columns, width, wide);
        memset(dot, 0, sizeof(dot));
        for (int64_t i = copied * wide; i < ahead * wide; i++) {
            total[i] = power[0][i] * (REAL)c[0];
            dot[i % wide] += power[0][i] * base[i];
        }
        slope += d[0] * NAME(added)(dot, wide);
        copied = ahead;
        for (int64_t t = 0, before = copied; t < job->steps; t++) {
            const int64_t first = done[t], last = before == job->rows ? job->rows : before - job->reach;
            if (last <= first) break;
            NAME(spread)(power[(t + 1) % 2], power[t % 2], base, 0, (REAL)c[t + 1], total, dot, job, first, last, wide);
            slope += d[t + 1] * NAME(added)(dot, wide);
            if (t == job->steps - 1) NAME(copy_out)(grad_u, total, first, last, job->columns, width, wide);
            done[t] = before = last;
        }
    }
    return slope;
}

/* Every block of columns, forward or, given `grad`, backward; then `parts` receives one number per block. */
static int NAME(blocks)(NAME(job) *job, const REAL *grad, const REAL *u, REAL *out, double alpha, const double *c,
                        const double *d, double *parts, int threads) {
    /* two lanes share the reading of indices and weights; a narrow matrix would only compute more padding */
    const int64_t columns = job->columns, block = (columns > LANES ? 2 : 1) * LANES;
    const int64_t blocks = (columns + block - 1) / block, steps = job->steps;
    int failed = 0;
    (void)threads;
    job->reach = 0;
    for (int64_t i = 0; i < job->rows; i++)
        for (int64_t n = i * job->degree; n < (i + 1) * job->degree; n++) {
            const int64_t distance = job->index[n] > i ? job->index[n] - i : i - job->index[n];
            job->reach = distance > job->reach ? distance : job->reach;
        }
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(| : failed)
#endif
    {
        /* once per thread: fresh pages cost more than the arithmetic of a small bag */
        NAME(lanes) *memory = aligned_alloc(64, (size_t)(job->rows * block / LANES * (grad ? 4 : 3)) * sizeof(*memory));
        int64_t *done = malloc((size_t)steps * sizeof(int64_t));
        if (!memory || !done) failed = 1;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t b = 0; b < blocks; b++) {
            if (failed) continue;
            const int64_t first = b * block, left = columns - first, width = left < block ? left : block;
            /* the last block may be narrow */
            const int64_t wide = width > LANES ? 2 : 1;
            memset(done, 0, (size_t)steps * sizeof(int64_t));
            if (grad)
                parts[b] = NAME(backward)(job, grad + first, u + first, out + first, width, wide, c, d, memory, done);
            else
                NAME(forward)(job, u + first, out + first, width, wide, (REAL)alpha, memory, done);
        }
        free(memory);
        free(done);
    }
    return failed;
}

/* g (rows, columns) receives the result; steps >= 1. */
int NAME(sm_steps)(const REAL *u, REAL *g, const int32_t *index, const REAL *weight, const REAL *self_weight,
                   int64_t rows, int64_t columns, int64_t degree, double alpha, int64_t steps, int threads) {
    NAME(job) job = {index, weight, self_weight, rows, columns, degree, steps, 0};
    return NAME(blocks)(&job, NULL, u, g, alpha, NULL, NULL, NULL, threads);
}

/* grad_u (rows, columns) receives sum_s c(s) A^s grad, *slope sum_s d(s) <A^s grad, u>; c, d of steps + 1 numbers. */
int NAME(sm_gradients)(const REAL *grad, const REAL *u, REAL *grad_u, double *slope, const double *c, const double *d,
                       const int32_t *index, const REAL *weight, const REAL *self_weight, int64_t rows,
                       int64_t columns, int64_t degree, int64_t steps, int threads) {
    NAME(job) job = {index, weight, self_weight, rows, columns, degree, steps, 0};
    const int64_t most = (columns + LANES - 1) / LANES;
    double *parts = calloc((size_t)most, sizeof(double));
    int failed = !parts;
    if (parts) failed = NAME(blocks)(&job, grad, u, grad_u, 0, c, d, parts, threads);
    *slope = 0;
    /* in the order of the blocks, whoever computed them */
    for (int64_t b = 0; b < most && !failed; b++) *slope += parts[b];
    free(parts);
    return failed;
}
#undef LANES
#endif
