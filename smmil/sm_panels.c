/* The columns of a matrix in blocks of panels, and all T steps of sm_kernel.c on a panel; included once per width of
 * vectors and number type.
 *
 * Columns are independent of each other, so a block of them is copied out, in panels of one or more strips of STRIP
 * columns, and each panel goes through all T steps. Within a panel the steps follow each other at the distance of the
 * farthest neighbour (`reach` rows): a step may compute row i as soon as the step before has row i + reach, so that on a
 * lattice the rows in between stay in cache for all steps and memory is read once, not T times. Wide panels share the
 * reading of the table, narrow ones keep more rows in cache. Blocks are shared out to threads; no sum depends on how,
 * nor on the number of threads, so neither does any bit of the result. Functions return 0, or 1 when memory ran out.
 */
#include "sm_rows.c"

/* How a block of `width` columns lies in memory: `strips` / `wide` panels, each (rows + 1, wide) strips; strip n of row
 * i starts at at[n] + i * row numbers. */
typedef struct {
    int64_t width, strips, wide, row, at[MOST];
} NAME(layout);

static NAME(layout) NAME(laid_out)(const NAME(job) *job, int64_t width) {
    const int64_t strips = (width + STRIP - 1) / STRIP, wide = strips == MOST && job->reach <= NEAR ? WIDE : 1;
    NAME(layout) out = {width, strips, wide, wide * STRIP, {0}};
    for (int64_t n = 0; n < strips; n++) out.at[n] = (n / wide * (job->rows + 1) * wide + n % wide) * STRIP;
    return out;
}

INLINE void NAME(move)(REAL *to, const REAL *from, REAL factor) {
    for (int64_t v = 0; v < VECTORS; v++) ((NAME(loose) *)to)[v] = ((const NAME(loose) *)from)[v] * factor;
}

/* a block from the matrix, times `scale` if given, into panels; whole strips move in registers, the last columns one by
 * one */
TARGET static void NAME(copy_in)(REAL *restrict block, const REAL *restrict matrix, const REAL *scale,
                                 const NAME(job) *job, NAME(layout) to) {
    const int64_t whole = to.width / STRIP, rest = to.width % STRIP;
    for (int64_t i = 0; i < job->rows; i++, matrix += job->columns, block += to.row) {
        const REAL factor = scale ? scale[i] : 1;
        if (whole == MOST) {
            for (int64_t n = 0; n < MOST; n++) NAME(move)(block + to.at[n], matrix + n * STRIP, factor);
        } else {
            for (int64_t n = 0; n < whole; n++) NAME(move)(block + to.at[n], matrix + n * STRIP, factor);
            for (int64_t n = 0; n < STRIP && rest; n++)
                block[to.at[whole] + n] = n < rest ? matrix[whole * STRIP + n] * factor : 0;
        }
    }
}

TARGET static void NAME(copy_out)(REAL *restrict matrix, const REAL *restrict block, const NAME(job) *job,
                                  NAME(layout) from) {
    const int64_t whole = from.width / STRIP, rest = from.width % STRIP;
    for (int64_t i = 0; i < job->rows; i++, matrix += job->columns, block += from.row) {
        if (whole == MOST) {
            for (int64_t n = 0; n < MOST; n++) NAME(move)(matrix + n * STRIP, block + from.at[n], 1);
        } else {
            for (int64_t n = 0; n < whole; n++) NAME(move)(matrix + n * STRIP, block + from.at[n], 1);
            if (rest) memcpy(matrix + whole * STRIP, block + from.at[whole], (size_t)rest * sizeof(REAL));
        }
    }
}

/* rows first..last - 1 of what step 0 of the gradients adds: to dot, and to total, which holds grad */
TARGET static void NAME(begin)(NAME(vector) *restrict out, NAME(vector) *restrict total,
                               const NAME(vector) *restrict base, NAME(vector) *dot, REAL c, const REAL *scale,
                               int64_t first, int64_t last, int64_t wide) {
    for (int64_t i = first; i < last; i++) {
        const REAL factor = scale ? scale[i] : 1;
        for (int64_t w = 0, at = i * wide; w < wide; w++, at++) {
            out[at] = total[at] * factor;
            dot[w] += total[at] * base[at], total[at] *= c;
        }
    }
}

static double NAME(added)(const NAME(vector) *dot, int64_t wide) {
    double sum = 0;
    for (int64_t w = 0; w < wide; w++)
        for (int64_t lane = 0; lane < LANES; lane++) sum += (double)dot[w][lane];
    return sum;
}

/* All steps on one panel of scale * U, which receives the result; given `total`, a panel of grad, that one becomes dU
 * and U is as it is.
 * `value`: two panels with a row of zeros behind them; `done` and `number`, per step the rows done and the segment that
 * comes next, are 0. Returns the panel's part of dalpha. */
static double NAME(panel)(const NAME(job) *job, NAME(vector) *base, NAME(vector) *total, NAME(vector) *const *value,
                          int64_t *done, int64_t *number, const double *c, const double *d, int64_t wide) {
    NAME(vector) dot[WIDE * VECTORS];
    double slope = 0;
    for (int64_t begun = 0, last_step = job->steps - 1; done[last_step] < job->rows;) {
        const int64_t ahead = begun + TILE < job->rows ? begun + TILE : job->rows;
        if (total) {
            memset(dot, 0, sizeof(dot));
            NAME(begin)(value[0], total, base, dot, (REAL)c[0], job->scale, begun, ahead, wide);
            slope += d[0] * NAME(added)(dot, wide);
        } else if (!last_step) {
            /* the only step reads rows that it has written */
            memcpy(value[0] + begun * wide, base + begun * wide, (size_t)((ahead - begun) * wide) * sizeof(*base));
        }
        begun = ahead;
        for (int64_t t = 0, before = begun; t < job->steps; t++) {
            const int64_t first = done[t], last = before == job->rows ? job->rows : before - job->reach;
            if (last <= first) break;
            NAME(step) step = {.out = value[(t + 1) % 2], .in = value[t % 2], .base = base, .factor = job->inner};
            if (total) step.total = total, step.dot = dot, step.c = (REAL)c[t + 1];
            else if (!t && last_step) step.in = base;
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
                          const double *c, const double *d, NAME(vector) *memory, int64_t *counts) {
    const NAME(layout) layout = NAME(laid_out)(job, width);
    const int64_t wide = layout.wide * VECTORS, size = (job->rows + 1) * wide, whole = size * layout.strips / layout.wide;
    NAME(vector) *value[2] = {memory, memory + size}, *base = memory + 2 * size, *total = base + whole;
    double slope = 0;
    for (int v = 0; v < 2; v++) memset(value[v] + job->rows * wide, 0, (size_t)wide * sizeof(NAME(vector)));
    NAME(copy_in)((REAL *)base, u, grad ? NULL : job->scale, job, layout);
    if (grad) NAME(copy_in)((REAL *)total, grad, NULL, job, layout);
    for (int64_t at = 0; at < whole; at += size) {
        memset(base + at + job->rows * wide, 0, (size_t)wide * sizeof(NAME(vector)));
        memset(counts, 0, 2 * (size_t)job->steps * sizeof(int64_t));
        slope += NAME(panel)(job, base + at, grad ? total + at : NULL, value, counts, counts + job->steps, c, d, wide);
    }
    NAME(copy_out)(out, (REAL *)(grad ? total : base), job, layout);
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

TARGET static int64_t NAME(surveyed)(const NAME(job) *job, uint8_t *plain, uint8_t *like) {
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
        job->inner[i] = alpha ? (NAME(pair)){(REAL)(1 - *alpha), (REAL)*alpha * s * s} : (NAME(pair)){s, s * s};
        job->outer[i] = alpha ? (NAME(pair)){(REAL)(1 - *alpha) / s, (REAL)*alpha * s} : job->inner[i];
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
    const int64_t columns = job->columns, eighth = (columns + 8 * STRIP - 1) / (8 * STRIP);
    const int64_t block = (eighth < MOST ? eighth : MOST) * STRIP, blocks = (columns + block - 1) / block;
    const int ready = NAME(prepare)(job, alpha);
    large_pages(out, (size_t)(job->rows * columns) * sizeof(REAL));
    int failed = !ready;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(| : failed)
#endif
    {
        /* once per thread: fresh pages cost more than the arithmetic of a small bag */
        const size_t size = (size_t)((job->rows + 1) * block * (grad ? 4 : 3)) * sizeof(REAL);
        NAME(vector) *memory = aligned_alloc(64, size);
        if (memory) large_pages(memory, size);
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
    const int64_t most = (columns + STRIP - 1) / STRIP;
    double *parts = calloc((size_t)most, sizeof(double));
    int failed = !parts;
    if (parts) failed = NAME(blocks)(&job, grad, u, grad_u, NULL, c, d, parts, threads);
    *slope = 0;
    /* in the order of the blocks, whoever computed them */
    for (int64_t b = 0; b < most && !failed; b++) *slope += parts[b];
    free(parts);
    return failed;
}
#undef REAL
