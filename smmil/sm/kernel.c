/* Polynomials of the normalised adjacency A on a CPU: P(A) U = sum_s c(s) f^s A^s U, by Horner's scheme
 *
 *     H <- c(T) U,   H <- f A H + c(t) U   for t = T-1, ..., 0.
 *
 * With f = alpha, c(T) = 1 and c(t) = 1 - alpha these are the T steps of Sm (paper, Equation 8); with f = 1 and the
 * derivatives of the coefficients, <P(A) G, U> is the gradient of alpha (smmil/sm/operator.py).
 *
 * U is (rows, columns), row-major. A is a neighbour table: row i has `degree` pairs (index, weight) and a self weight;
 * padding is the row itself with weight 0.
 *
 * The columns of U are independent, so they are cut into panels of 256 or 64 bytes a row. A panel is copied out, goes
 * through all steps, and is copied back: its rows lie close together, and each weight serves many columns. Threads share
 * the panels. Every sum has a fixed order, so no result depends on the number of threads.
 *
 * The file includes itself once per number type (REAL) and vector width (BYTES): functions are called
 * sm_polynomial_float_16 and so on, and sm_widest says which of them this machine can run.
 */
#ifndef REAL
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define JOIN(name, type, bytes) name##_##type##_##bytes
#define EXPAND_AND_JOIN(...) JOIN(__VA_ARGS__)
#define NAME(name) EXPAND_AND_JOIN(name, REAL, BYTES)

/* A strip is one cache line of a row. A wide panel has as many strips as AVX-512 and NEON have registers for; the
 * columns that fill no wide panel go into panels of one strip. */
#define STRIP_BYTES 64
#define WIDE 4

/* Every processor has these 16-byte vectors (SSE2, NEON), or the compiler splits them. */
#define BYTES 16
#define TARGET
#define REAL float
#include "kernel.c"
#define REAL double
#include "kernel.c"

#ifdef __x86_64__
#undef BYTES
#undef TARGET
#define BYTES 32
#define TARGET __attribute__((target("avx2,fma")))
#define REAL float
#include "kernel.c"
#define REAL double
#include "kernel.c"

#undef BYTES
#undef TARGET
#define BYTES 64
#define TARGET __attribute__((target("avx512f")))
#define REAL float
#include "kernel.c"
#define REAL double
#include "kernel.c"
#endif

/* Return the widest vectors, in bytes, that this machine has. */
int sm_widest(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return 64;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 32;
#endif
    return 16;
}

#else /* the functions of one number type and vector width */

typedef REAL NAME(vector) __attribute__((vector_size(BYTES), may_alias));
#define STRIP ((int64_t)(STRIP_BYTES / sizeof(REAL)))
#define VECTORS (STRIP_BYTES / BYTES)
#define LANES ((int64_t)(BYTES / sizeof(REAL)))

/* The neighbour table and the polynomial. */
typedef struct {
    const int32_t *index;
    const REAL *weight, *self_weight;
    int64_t rows, columns, degree, steps;
    double factor;
    const double *c;
} NAME(job);

/* One Horner step on a panel of `vectors` vectors a row: out = factor A in + c base. A constant for `vectors` keeps the
 * sums in registers. */
INLINE void NAME(gather)(const NAME(job) *job, NAME(vector) *restrict out, const NAME(vector) *in,
                         const NAME(vector) *base, REAL factor, REAL c, int64_t vectors) {
    const int32_t *restrict index = job->index;
    const REAL *restrict weight = job->weight;
    for (int64_t i = 0; i < job->rows; i++, index += job->degree, weight += job->degree) {
        NAME(vector) sum[WIDE * VECTORS];
        for (int64_t v = 0; v < vectors; v++) sum[v] = in[i * vectors + v] * job->self_weight[i];
        for (int64_t k = 0; k < job->degree; k++) {
            const NAME(vector) *neighbour = in + index[k] * vectors;
            for (int64_t v = 0; v < vectors; v++) sum[v] += neighbour[v] * weight[k];
        }
        for (int64_t v = 0; v < vectors; v++) {
            /* in this order GCC fuses factor * sum into the addition, as torch.add does, so both paths round alike */
            const NAME(vector) scaled = sum[v] * factor;
            out[i * vectors + v] = base[i * vectors + v] * c + scaled;
        }
    }
}

/* Copy `width` columns of a matrix into a panel, zeros beyond them. Rows of a constant size copy faster. */
static void NAME(copy_in)(REAL *restrict panel, const REAL *restrict matrix, const NAME(job) *job, int64_t width,
                          int64_t strips) {
    for (int64_t i = 0; i < job->rows; i++, panel += strips * STRIP) {
        const REAL *row = matrix + i * job->columns;
        if (width == WIDE * STRIP) {
            memcpy(panel, row, WIDE * STRIP_BYTES);
        } else {
            memcpy(panel, row, (size_t)width * sizeof(REAL));
            memset(panel + width, 0, (size_t)(strips * STRIP - width) * sizeof(REAL));
        }
    }
}

/* All steps on the panel that starts at `u`; returns the panel of the result. */
TARGET static NAME(vector) *NAME(evaluate)(const NAME(job) *job, const REAL *u, int64_t width, int64_t strips,
                                           NAME(vector) *base, NAME(vector) *const *value) {
    NAME(copy_in)((REAL *)base, u, job, width, strips);
    for (int64_t t = 0; t < job->steps; t++) {
        /* the first step reads U, so its factor holds c(T) */
        const REAL factor = (REAL)(t ? job->factor : job->factor * job->c[job->steps]);
        const REAL c = (REAL)job->c[job->steps - 1 - t];
        const NAME(vector) *in = t ? value[(t + 1) % 2] : base;
        if (strips == WIDE)
            NAME(gather)(job, value[t % 2], in, base, factor, c, WIDE * VECTORS);
        else
            NAME(gather)(job, value[t % 2], in, base, factor, c, VECTORS);
    }
    return value[(job->steps - 1) % 2];
}

/* Sum of the products of two panels, each lane in REAL over 64 strips, then in double. */
TARGET static double NAME(inner_product)(const NAME(vector) *a, const NAME(vector) *b, int64_t strips) {
    double sum = 0;
    for (int64_t first = 0, count = strips * VECTORS; first < count; first += 64 * VECTORS) {
        const int64_t last = first + 64 * VECTORS < count ? first + 64 * VECTORS : count;
        NAME(vector) product = {0};
        for (int64_t v = first; v < last; v++) product += a[v] * b[v];
        for (int64_t lane = 0; lane < LANES; lane++) sum += (double)product[lane];
    }
    return sum;
}

/* Compute P(A) U of all columns.
 *
 * u (rows, columns). `other` NULL: out (rows, columns) receives P(A) U. Otherwise *product receives <P(A) U, other>.
 * index, weight (rows, degree); self_weight (rows); c has steps + 1 numbers; steps >= 1.
 * Returns 0, or 1 when memory ran out. */
int NAME(sm_polynomial)(const REAL *u, const REAL *other, REAL *out, double *product, const int32_t *index,
                        const REAL *weight, const REAL *self_weight, int64_t rows, int64_t columns, int64_t degree,
                        double factor, const double *c, int64_t steps, int threads) {
    const NAME(job) job = {index, weight, self_weight, rows, columns, degree, steps, factor, c};
    const int64_t wide = columns / (WIDE * STRIP), panels = wide + (columns % (WIDE * STRIP) + STRIP - 1) / STRIP;
    double *parts = calloc((size_t)panels, sizeof(double));
    int failed = !parts;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(| : failed)
#endif
    {
        const size_t size = (size_t)rows * (wide ? WIDE : 1) * STRIP_BYTES;
        char *memory = aligned_alloc(STRIP_BYTES, 3 * size);
        NAME(vector) *base = (void *)memory, *value[2] = {(void *)(memory + size), (void *)(memory + 2 * size)};
        failed |= !memory;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t p = 0; p < panels; p++) {
            if (failed || !parts) continue;
            const int64_t strips = p < wide ? WIDE : 1, first = (p < wide ? p * WIDE : wide * WIDE + p - wide) * STRIP;
            const int64_t left = columns - first, width = left < strips * STRIP ? left : strips * STRIP;
            const NAME(vector) *result = NAME(evaluate)(&job, u + first, width, strips, base, value);
            if (other) {
                NAME(copy_in)((REAL *)base, other + first, &job, width, strips);
                parts[p] = NAME(inner_product)(result, base, rows * strips);
            } else {
                const REAL *row = (const REAL *)result;
                for (int64_t i = 0; i < rows; i++, row += strips * STRIP)
                    memcpy(out + first + i * columns, row, (size_t)width * sizeof(REAL));
            }
        }
        free(memory);
    }
    /* in the order of the panels, whichever thread computed them */
    for (int64_t p = 0; other && parts && p < panels; p++) *product = p ? *product + parts[p] : parts[p];
    free(parts);
    return failed;
}
#undef STRIP
#undef VECTORS
#undef LANES
#undef REAL
#endif
