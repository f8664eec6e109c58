/* One step of sm_kernel.c on some rows of a panel of `wide` vectors, by their table or along a chain of sm_chains.c;
 * included once per width of vectors and number type.
 */

/* BYTES of columns of one row, in a panel and anywhere */
typedef REAL NAME(vector) __attribute__((vector_size(BYTES), may_alias));
typedef REAL NAME(loose) __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
#define LANES ((int64_t)(BYTES / sizeof(REAL)))

/* factors of a row: of scale * U and of the sum over the neighbours; with `backward`, of that sum for the power and the next */
typedef struct {
    REAL first, second;
} NAME(pair);

/* A table and how it is gone through; `inner` are the factors of all steps but the last. */
typedef struct {
    const int32_t *index;
    const REAL *weight, *self_weight, *scale;
    int64_t rows, columns, degree, steps, reach;
    chains chains;
    NAME(pair) *inner, *outer;
    REAL *ones;
} NAME(job);

/* What a step reads and writes on a panel of `wide` vectors: out = factor.first * base + factor.second * sum, or, with
 * `total`, out = factor.second * sum, power = factor.first * sum, total += c * power, dot += <power, base>. */
typedef struct {
    NAME(vector) *out, *total, *dot;
    const NAME(vector) *in, *base;
    const NAME(pair) *factor;
    REAL c;
} NAME(step);

INLINE void NAME(finish)(const NAME(step) *step, const NAME(vector) *sum, NAME(vector) *dot, NAME(pair) factor, int64_t i,
                         int64_t wide, int backward) {
    for (int64_t w = 0, at = i * wide; w < wide; w++, at++) {
        if (backward) {
            const NAME(vector) power = sum[w] * factor.first;
            step->total[at] += power * step->c;
            dot[w] += power * step->base[at];
            step->out[at] = sum[w] * factor.second;
        } else {
            step->out[at] = step->base[at] * factor.first + sum[w] * factor.second;
        }
    }
}

/* Rows first..last - 1 by their table. */
INLINE void NAME(gather)(const NAME(step) *step, NAME(vector) *dot, const NAME(job) *job, int64_t first, int64_t last,
                         int64_t degree, int64_t wide, int backward) {
    const int32_t *restrict index = job->index;
    const REAL *restrict weight = job->weight;
    for (int64_t i = first; i < last; i++) {
        NAME(vector) sum[WIDE * VECTORS];
        for (int64_t w = 0; w < wide; w++) sum[w] = step->in[i * wide + w] * job->self_weight[i];
        for (int64_t k = 0; k < degree; k++) {
            const NAME(vector) *neighbour = step->in + index[i * degree + k] * wide;
            const REAL factor = weight[i * degree + k];
            for (int64_t w = 0; w < wide; w++) sum[w] += neighbour[w] * factor;
        }
        NAME(finish)(step, sum, dot, step->factor[i], i, wide, backward);
    }
}

/* Rows first..last - 1 of a chain; `triple` is the column before row `first`. */
INLINE void NAME(slide)(const NAME(step) *step, NAME(vector) *dot, const int32_t *triple, const int32_t *run,
                        int64_t rows, int64_t first, int64_t last, int64_t wide, int backward) {
    const NAME(vector) *in = step->in;
    NAME(vector) left[WIDE * VECTORS], sides[WIDE * VECTORS], whole[WIDE * VECTORS];
    for (int64_t w = 0; w < wide; w++) {
        left[w] = in[triple[0] * wide + w] + in[triple[1] * wide + w] + in[triple[2] * wide + w];
        sides[w] = in[triple[3] * wide + w] + in[triple[5] * wide + w];
        whole[w] = sides[w] + in[triple[4] * wide + w];
    }
    for (int64_t i = first; i < last;) {
        const int32_t *column = triple + 3 * (i - first) + 6;
        const int64_t end = run[i] < last - i ? i + run[i] : last;
        const NAME(pair) factor = step->factor[i];
        const NAME(vector) *a = in + column[0] * wide, *b = in + column[1] * wide, *c = in + column[2] * wide;
        const int64_t da = column[0] == rows ? 0 : wide, db = column[1] == rows ? 0 : wide,
                      dc = column[2] == rows ? 0 : wide;
        for (; i < end; i++, a += da, b += db, c += dc) {
            NAME(vector) sum[WIDE * VECTORS];
            for (int64_t w = 0; w < wide; w++) {
                const NAME(vector) ahead = a[w] + c[w], right = ahead + b[w];
                sum[w] = left[w] + sides[w] + right;
                left[w] = whole[w], sides[w] = ahead, whole[w] = right;
            }
            NAME(finish)(step, sum, dot, factor, i, wide, backward);
        }
    }
}

/* rows first..last - 1, `*number` being the segment of row `first` and then that of row `last` */
INLINE void NAME(segments)(const NAME(step) *step, NAME(vector) *dot, const NAME(job) *job, int64_t first, int64_t last,
                           int64_t *number, int64_t wide, int backward) {
    while (first < last) {
        const segment at = job->chains.segments[*number];
        const int64_t end = at.last < last ? at.last : last;
        if (at.triples) {
            NAME(slide)(step, dot, at.triples + 3 * (first - at.first), job->chains.run, job->rows, first, end, wide,
                        backward);
        } else if (job->degree == 8) {
            NAME(gather)(step, dot, job, first, end, 8, wide, backward);
        } else {
            NAME(gather)(step, dot, job, first, end, job->degree, wide, backward);
        }
        first = end;
        *number += end == at.last;
    }
}

/* the same; width and direction become constants, which keeps sums in registers */
TARGET static void NAME(spread)(const NAME(step) *given, const NAME(job) *job, int64_t first, int64_t last,
                                int64_t *number, int64_t wide) {
    const NAME(step) step = *given;
    NAME(vector) dot[WIDE * VECTORS] = {{0}};
    if (wide == WIDE * VECTORS && step.total) {
        NAME(segments)(&step, dot, job, first, last, number, WIDE * VECTORS, 1);
    } else if (wide == WIDE * VECTORS) {
        NAME(segments)(&step, dot, job, first, last, number, WIDE * VECTORS, 0);
    } else if (step.total) {
        NAME(segments)(&step, dot, job, first, last, number, VECTORS, 1);
    } else {
        NAME(segments)(&step, dot, job, first, last, number, VECTORS, 0);
    }
    for (int64_t w = 0; w < wide && step.dot; w++) step.dot[w] = dot[w];
}
