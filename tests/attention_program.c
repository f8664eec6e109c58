/* The attention kernel as a program, for the sanitizers and for an emulator of another processor
 * (tests/test_attention_program.py): random bags in memory of exactly their size, every width of vectors that the
 * machine has, against the plain formula in double precision. Prints the largest error of each width; exits with 1
 * where it is too large.
 */
#include <stdio.h>

#include "../smmil/attention_kernel.c"

#define KINDS 5
#define HEADS 2

typedef int (*forward)(const attention_job *, float *, float *, int);
typedef int (*backward)(const attention_job *, const attention_gradients *, float *, int);

static uint64_t state = 1;

static float drawn(void) {
    state = mixed(state);
    return (float)((double)(state >> 11) / (double)((uint64_t)1 << 53) * 4 - 2);
}

/* `count` numbers in memory of their own, so that reading beyond them is seen */
static float *random_numbers(int64_t count) {
    float *out = malloc((size_t)count * sizeof(float));
    for (int64_t n = 0; n < count; n++) out[n] = drawn();
    return out;
}

/* result and dq of one query of a head by the formula; g: gradient of its result */
static double query_error(const attention_job *job, const float *g, const float *out, const float *dq, int64_t bag,
                          int64_t head, int64_t i) {
    const int64_t first = job->bounds[bag], n = job->bounds[bag + 1] - first, d = job->width, e = job->value_width;
    double *p = malloc((size_t)n * sizeof(double)), top = -INFINITY, sum = 0, error = 0, mean = 0;
    const float *q = job->q + (first + i) * job->q_stride + head * d;
    for (int64_t j = 0; j < n; j++) {
        p[j] = job->table ? job->table[head * KINDS + job->kinds[bag][i * job->kinds_stride[bag] + j]] : 0;
        for (int64_t c = 0; c < d; c++)
            p[j] += (double)job->scale * q[c] * job->k[(first + j) * job->k_stride + head * d + c];
        top = fmax(top, p[j]);
    }
    for (int64_t j = 0; j < n; j++) sum += p[j] = exp(p[j] - top);
    for (int64_t c = 0; c < e; c++) {
        double value = 0;
        for (int64_t j = 0; j < n; j++) value += p[j] / sum * job->v[(first + j) * job->v_stride + head * e + c];
        error = fmax(error, fabs(value - out[(first + i) * job->out_stride + head * e + c]));
        mean += value * g[(first + i) * HEADS * e + head * e + c];
    }
    for (int64_t c = 0; c < d; c++) {
        double slope = 0;
        for (int64_t j = 0; j < n; j++) {
            double along = -mean;
            for (int64_t f = 0; f < e; f++)
                along += (double)g[(first + i) * HEADS * e + head * e + f] * job->v[(first + j) * job->v_stride + head * e + f];
            slope += p[j] / sum * along * job->k[(first + j) * job->k_stride + head * d + c];
        }
        error = fmax(error, fabs(job->scale * slope - dq[(first + i) * HEADS * d + head * d + c]));
    }
    free(p);
    return error;
}

/* one random job of two bags; the largest error of results and dq; with dropout nothing to compare with, only to run */
static double one_job(forward ahead, backward back, int64_t d, int64_t e, int64_t n, int64_t m, int biased, int dropout) {
    const int64_t bounds[] = {0, n, n + m}, rows = n + m, strides[] = {rounded_up(n, TILE), rounded_up(m, TILE)};
    uint8_t *kinds[2];
    for (int b = 0; b < 2; b++) {
        const int64_t own = bounds[b + 1] - bounds[b];
        kinds[b] = calloc((size_t)(own * strides[b]), 1);
        for (int64_t at = 0; at < own * strides[b]; at++) kinds[b][at] = (uint8_t)((state = mixed(state)) % KINDS);
    }
    float *q = random_numbers(rows * HEADS * d), *k = random_numbers(rows * HEADS * d), *v = random_numbers(rows * HEADS * e);
    float *g = random_numbers(rows * HEADS * e), *table = random_numbers(HEADS * KINDS), *out = random_numbers(rows * HEADS * e);
    float *lse = random_numbers(rows * HEADS), *dq = random_numbers(rows * HEADS * d), *dk = random_numbers(rows * HEADS * d);
    float *dv = random_numbers(rows * HEADS * e), *dtable = random_numbers(2 * HEADS * KINDS);
    const attention_job job = {q, k, v, out, biased ? table : NULL, (const uint8_t *const *)kinds, bounds, strides,
                               HEADS * d, HEADS * d, HEADS * e, HEADS * e, 2, HEADS, d, e, biased ? KINDS : 0, 7,
                               dropout ? 1u << 30 : 0, 0.4f, dropout ? 4.0f / 3 : 1};
    const attention_gradients to = {g, HEADS * e, dq, dk, dv, biased ? dtable : NULL};
    double error = ahead(&job, out, lse, 1) || back(&job, &to, lse, 1) ? INFINITY : 0;
    for (int64_t bag = 0; bag < 2 && !dropout; bag++)
        for (int64_t head = 0; head < HEADS; head++)
            for (int64_t i = 0; i < bounds[bag + 1] - bounds[bag]; i++)
                error = fmax(error, query_error(&job, g, out, dq, bag, head, i));
    float *all[] = {q, k, v, g, table, out, lse, dq, dk, dv, dtable};
    for (int n = 0; n < 11; n++) free(all[n]);
    free(kinds[0]), free(kinds[1]);
    return error;
}

static double all_jobs(const char *name, forward ahead, backward back) {
    const int64_t widths[][2] = {{1, 1}, {3, 5}, {12, 12}, {16, 17}}, lengths[][2] = {{1, 2}, {15, 17}, {64, 65}, {255, 258}};
    double error = 0;
    for (int w = 0; w < 4; w++)
        for (int l = 0; l < 4; l++)
            for (int how = 0; how < 4; how++)
                error = fmax(error, one_job(ahead, back, widths[w][0], widths[w][1], lengths[l][0], lengths[l][1], how & 1, how & 2));
    printf("%s %g\n", name, error);
    return error;
}

int main(void) {
    double error = all_jobs("16", attention_forward_16, attention_backward_16);
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        error = fmax(error, all_jobs("32", attention_forward_32, attention_backward_32));
    if (__builtin_cpu_supports("avx512f")) error = fmax(error, all_jobs("64", attention_forward_64, attention_backward_64));
#endif
    return error > 1e-4;
}
