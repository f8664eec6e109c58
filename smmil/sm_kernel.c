/* T steps of Sm on a CPU (paper, Equation 8), G <- alpha A G + (1 - alpha) U, and, for a trainable alpha, their
 * gradients from one sweep over the powers Q(s) = A^s grad of the incoming gradient (A is symmetric):
 * dU = sum_s c(s) Q(s) and dalpha = sum_s d(s) <Q(s), U>, with the coefficients c of G(T) and d of dG(T)/dalpha as
 * polynomials in A.
 *
 * U, G, grad are (rows, columns), row-major. A is a neighbour table: row i has `degree` pairs (index, weight) and a
 * self weight; padding is the row itself with weight 0. Given `scale` s, every weight is s(i) s(j): the steps then run
 * on s(i) G(i), whose neighbours are only added up, and rows of a lattice share their sums (sm_chains.c).
 *
 * Columns are independent of each other, so a block of them is copied out, in panels of one or more vectors (lanes),
 * and each panel goes through all T steps. Within a panel the steps follow each other at the distance of the farthest
 * neighbour (`reach` rows): a step may compute row i as soon as the step before has row i + reach, so that on a lattice
 * the rows in between stay in cache for all steps and memory is read once, not T times. Wide panels share the reading
 * of the table, narrow ones keep more rows in cache. Blocks are shared out to threads; no sum depends on how, nor on
 * the number of threads, so neither does any bit of the result.
 *
 * This file includes itself once per number type. Each function returns 0, or 1 when memory ran out.
 */
#ifndef REAL
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
/* one build serves every x86 processor: the loader picks the widest version the machine has */
#define CLONES __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))
/* rows that the first step is ahead of what the window of all steps needs */
#define TILE 512
/* lanes of a block, and of a wide panel */
#define MOST 4
/* farthest neighbour with which a step over a wide panel finds its rows in the first-level cache a second time */
#define NEAR 48
#include "sm_chains.c"

/* Fresh memory of many small pages costs more than the arithmetic done in it: asks for large ones where there are. */
static void large_pages(void *memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)1 << 21, first = ((uintptr_t)memory + page - 1) / page * page;
    const uintptr_t last = ((uintptr_t)memory + bytes) / page * page;
    if (bytes >= 2 * page && last > first) (void)!madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

#define REAL float
#define NAME(x) x##_f32
#include "sm_kernel.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(x) x##_f64
#include "sm_kernel.c"
#else

#include "sm_rows.c"

/* How a block of `width` columns lies in memory: `lanes` / `wide` panels, each (rows + 1, wide) lanes. */
typedef struct {
    int64_t width, lanes, wide, size;
} NAME(layout);

/* a block from the matrix into panels; whole lanes move in registers, the last columns one by one */
CLONES static void NAME(copy_in)(NAME(lanes) *restrict panels, const REAL *restrict matrix, const NAME(job) *job,
                                 NAME(layout) to) {
    const int64_t row = to.wide, lane = to.wide == 1 ? to.size : 1, whole = to.width / LANES;
    for (int64_t i = 0; i < job->rows; i++) {
        const REAL *from = matrix + i * job->columns;
        NAME(lanes) *at = panels + i * row;
        if (whole == MOST) {
            for (int64_t l = 0; l < MOST; l++) at[l * lane] = *(const NAME(lanes) *)(from + l * LANES);
        } else {
            for (int64_t l = 0; l < whole; l++) at[l * lane] = *(const NAME(lanes) *)(from + l * LANES);
            if (whole < to.lanes) {
                at[whole * lane] = (NAME(lanes)){0};
                memcpy(at + whole * lane, from + whole * LANES, (size_t)(to.width - whole * LANES) * sizeof(REAL));
            }
        }
    }
}

CLONES static void NAME(copy_out)(REAL *restrict matrix, const NAME(lanes) *restrict panels, const NAME(job) *job,
                                  NAME(layout) to) {
    const int64_t row = to.wide, lane = to.wide == 1 ? to.size : 1, whole = to.width / LANES;
    for (int64_t i = 0; i < job->rows; i++) {
        REAL *out = matrix + i * job->columns;
        const NAME(lanes) *at = panels + i * row;
        if (whole == MOST) {
            for (int64_t l = 0; l < MOST; l++) *(NAME(lanes) *)(out + l * LANES) = at[l * lane];
        } else {
            for (int64_t l = 0; l < whole; l++) *(NAME(lanes) *)(out + l * LANES) = at[l * lane];
            if (whole < to.lanes)
                memcpy(out + whole * LANES, at + whole * lane, (size_t)(to.width - whole * LANES) * sizeof(REAL));
        }
    }
}

/* rows first..last - 1: out = scale * in; with `dot`, what step 0 of the gradients adds to dot and total */
CLONES static void NAME(begin)(NAME(lanes) *restrict out, NAME(lanes) *restrict in, const NAME(lanes) *restrict base,
                               NAME(lanes) *dot, REAL c, const REAL *scale, int64_t first, int64_t last, int64_t wide) {
    for (int64_t i = first; i < last; i++) {
        const REAL factor = scale ? scale[i] : 1;
        for (int64_t w = 0, at = i * wide; w < wide; w++, at++) {
            out[at] = in[at] * factor;
            if (dot) dot[w] += in[at] * base[at], in[at] *= c;
        }
    }
}

static double NAME(added)(const NAME(lanes) *dot, int64_t wide) {
    double sum = 0;
    for (int64_t w = 0; w < wide; w++)
        for (int64_t lane = 0; lane < LANES; lane++) sum += (double)dot[w][lane];
    return sum;
}

/* All steps on one panel of U, which receives the result; given `total`, a panel of grad, that one becomes dU.
 * `value`: two panels with a row of zeros behind them; `done` and `number`, per step the rows done and the segment that
 * comes next, are 0. Returns the panel's part of dalpha. */
static double NAME(panel)(const NAME(job) *job, NAME(lanes) *base, NAME(lanes) *total, NAME(lanes) *const *value,
                          int64_t *done, int64_t *number, const double *c, const double *d, int64_t wide) {
    NAME(lanes) dot[MOST];
    double slope = 0;
    for (int64_t begun = 0, last_step = job->steps - 1; done[last_step] < job->rows;) {
        const int64_t ahead = begun + TILE < job->rows ? begun + TILE : job->rows;
        memset(dot, 0, sizeof(dot));
        NAME(begin)(value[0], total ? total : base, base, total ? dot : NULL, total ? (REAL)c[0] : 1, job->scale, begun,
                    ahead, wide);
        if (total) slope += d[0] * NAME(added)(dot, wide);
        begun = ahead;
        for (int64_t t = 0, before = begun; t < job->steps; t++) {
            const int64_t first = done[t], last = before == job->rows ? job->rows : before - job->reach;
            if (last <= first) break;
            NAME(step) step = {.out = value[(t + 1) % 2], .in = value[t % 2], .base = base, .factor = job->inner};
            if (total) step.total = total, step.dot = dot, step.c = (REAL)c[t + 1];
            /* nobody needs a row of U after its last step */
            else if (t == last_step) step.out = base, step.factor = job->outer;
            NAME(spread)(&step, job, first, last, number + t, wide);
            if (total) slope += d[t + 1] * NAME(added)(dot, wide);
            done[t] = before = last;
        }
    }
    return slope;
}

/* The `width` columns from `u` on, in `memory` and 2 * steps `counts`; returns their part of dalpha. */
static double NAME(block)(const NAME(job) *job, const REAL *grad, const REAL *u, REAL *out, int64_t width,
                          const double *c, const double *d, NAME(lanes) *memory, int64_t *counts) {
    const int64_t lanes = (width + LANES - 1) / LANES, wide = lanes == MOST && job->reach <= NEAR ? MOST : 1;
    const NAME(layout) layout = {width, lanes, wide, job->rows + 1};
    const int64_t size = layout.size * wide;
    NAME(lanes) *value[2] = {memory, memory + size}, *base = memory + 2 * size, *total = base + layout.size * lanes;
    double slope = 0;
    for (int v = 0; v < 2; v++) memset(value[v] + job->rows * wide, 0, (size_t)wide * sizeof(NAME(lanes)));
    NAME(copy_in)(base, u, job, layout);
    if (grad) NAME(copy_in)(total, grad, job, layout);
    for (int64_t p = 0; p < lanes / wide; p++) {
        memset(counts, 0, 2 * (size_t)job->steps * sizeof(int64_t));
        slope += NAME(panel)(job, base + p * size, grad ? total + p * size : NULL, value, counts, counts + job->steps,
                             c, d, wide);
    }
    NAME(copy_out)(out, grad ? total : base, job, layout);
    return slope;
}

/* Reach; which rows have nothing but edges of weight s(i) s(j); which of those have the scale of the row before. */
INLINE int64_t NAME(survey)(const NAME(job) *job, uint8_t *plain, uint8_t *like, int64_t degree) {
    int32_t reach = 0;
    for (int32_t i = 0; i < job->rows; i++) {
        const int32_t *index = job->index + i * degree;
        const REAL *weight = job->weight + i * degree;
        int32_t far = 0, odd = 0;
        for (int64_t k = 0; k < degree; k++) {
            const int32_t distance = index[k] > i ? index[k] - i : i - index[k];
            far = distance > far ? distance : far;
            /* an edge of weight 0, or to the row itself */
            odd |= (weight[k] != 0) != (distance != 0);
        }
        reach = far > reach ? far : reach;
        plain[i] = job->scale && !odd && job->self_weight[i] == 0;
        like[i] = i && job->scale && job->scale[i] == job->scale[i - 1];
    }
    return reach;
}

CLONES static int64_t NAME(surveyed)(const NAME(job) *job, uint8_t *plain, uint8_t *like) {
    return job->degree == 8 ? NAME(survey)(job, plain, like, 8) : NAME(survey)(job, plain, like, job->degree);
}

/* Reach, factors and chains; 0 if memory ran out. alpha: forward; NULL: backward. */
static int NAME(prepare)(NAME(job) *job, const double *alpha) {
    const int64_t rows = job->rows, degree = job->degree;
    uint8_t *plain = malloc(2 * (size_t)rows + 1), *like = plain + rows;
    job->inner = malloc((size_t)(2 * rows + 1) * sizeof(NAME(pair)));
    job->outer = job->inner + rows;
    job->ones = malloc((size_t)(rows * degree + 1) * sizeof(REAL));
    int found = plain && job->inner && job->ones;
    if (found) {
        job->reach = NAME(surveyed)(job, plain, like);
        found = find_chains(&job->chains, job->index, plain, like, rows, degree);
    }
    free(plain);
    for (int64_t i = 0; i < rows && found; i++) {
        const REAL s = job->scale ? job->scale[i] : 1;
        job->inner[i] = alpha ? (NAME(pair)){(REAL)(1 - *alpha) * s, (REAL)*alpha * s * s} : (NAME(pair)){s, s * s};
        job->outer[i] = alpha ? (NAME(pair)){(REAL)(1 - *alpha), (REAL)*alpha * s} : job->inner[i];
    }
    /* what is gathered of scaled values has the weights 1 and 0 */
    for (int64_t k = 0; k < job->chains.count && found && job->scale; k++) {
        const segment *at = job->chains.segments + k;
        for (int64_t n = at->first * degree; n < at->last * degree && !at->triples; n++)
            job->ones[n] = job->weight[n] != 0;
    }
    if (job->scale) job->weight = job->ones;
    return found;
}

/* Every block of columns, forward or, given `grad`, backward; then `parts` receives one number per block. */
static int NAME(blocks)(NAME(job) *job, const REAL *grad, const REAL *u, REAL *out, const double *alpha,
                        const double *c, const double *d, double *parts, int threads) {
    /* wide blocks are copied faster, a narrow matrix has enough for several threads */
    const int64_t columns = job->columns, eighth = (columns + 8 * LANES - 1) / (8 * LANES);
    const int64_t block = (eighth < MOST ? eighth : MOST) * LANES, blocks = (columns + block - 1) / block;
    const int ready = NAME(prepare)(job, alpha);
    large_pages(out, (size_t)(job->rows * columns) * sizeof(REAL));
    int failed = !ready;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(| : failed)
#endif
    {
        /* once per thread: fresh pages cost more than the arithmetic of a small bag */
        const size_t size = (size_t)((job->rows + 1) * block / LANES * (grad ? 4 : 3));
        NAME(lanes) *memory = aligned_alloc(64, size * sizeof(*memory));
        if (memory) large_pages(memory, size * sizeof(*memory));
        int64_t *counts = malloc(2 * (size_t)job->steps * sizeof(int64_t));
        if (!ready || !memory || !counts) failed = 1;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t b = 0; b < blocks; b++) {
            if (failed) continue;
            const int64_t first = b * block, left = columns - first, width = left < block ? left : block;
            const double part = NAME(block)(job, grad ? grad + first : NULL, u + first, out + first, width, c, d,
                                            memory, counts);
            if (grad) parts[b] = part;
        }
        free(memory);
        free(counts);
    }
    free(job->inner);
    free(job->ones);
    free(job->chains.segments);
    free(job->chains.triples);
    free(job->chains.run);
    return failed;
}

/* g (rows, columns) receives the result; steps >= 1. `scale` (rows) or NULL. */
int NAME(sm_steps)(const REAL *u, REAL *g, const int32_t *index, const REAL *weight, const REAL *self_weight,
                   const REAL *scale, int64_t rows, int64_t columns, int64_t degree, double alpha, int64_t steps,
                   int threads) {
    NAME(job) job = {index, weight, self_weight, scale, rows, columns, degree, steps, .ones = NULL};
    return NAME(blocks)(&job, NULL, u, g, &alpha, NULL, NULL, NULL, threads);
}

/* grad_u (rows, columns) receives sum_s c(s) A^s grad, *slope sum_s d(s) <A^s grad, u>; c, d of steps + 1 numbers. */
int NAME(sm_gradients)(const REAL *grad, const REAL *u, REAL *grad_u, double *slope, const double *c, const double *d,
                       const int32_t *index, const REAL *weight, const REAL *self_weight, const REAL *scale,
                       int64_t rows, int64_t columns, int64_t degree, int64_t steps, int threads) {
    NAME(job) job = {index, weight, self_weight, scale, rows, columns, degree, steps, .ones = NULL};
    const int64_t most = (columns + LANES - 1) / LANES;
    double *parts = calloc((size_t)most, sizeof(double));
    int failed = !parts;
    if (parts) failed = NAME(blocks)(&job, grad, u, grad_u, NULL, c, d, parts, threads);
    *slope = 0;
    /* in the order of the blocks, whoever computed them */
    for (int64_t b = 0; b < most && !failed; b++) *slope += parts[b];
    free(parts);
    return failed;
}
#undef LANES
#endif
