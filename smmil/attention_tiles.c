/* attention_kernel.c in vectors of BYTES: ROWS queries against TILE keys at a time, all of it in the first two caches;
 * included once per width of vectors.
 *
 * Keys and values are copied out tile by tile, transposed, (width, TILE), where a product runs along the keys, and as
 * they are, (TILE, width padded to whole vectors), where it runs along the width.
 */
typedef float NAME(vec) __attribute__((vector_size(BYTES)));
typedef float NAME(loose) __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t NAME(ints) __attribute__((vector_size(BYTES)));
typedef uint32_t NAME(bits) __attribute__((vector_size(BYTES)));
typedef uint16_t NAME(shorts) __attribute__((vector_size(BYTES / 2)));
typedef uint8_t NAME(kind) __attribute__((vector_size(BYTES / 4), aligned(1), may_alias));
#define LANES ((int64_t)(BYTES / 4))
#define VEC NAME(vec)
#define AT(p) (*(NAME(loose) *)(p))
#define READ(p) (*(const NAME(loose) *)(p))
#define EVERY(r) _Pragma("GCC unroll 8") for (int64_t r = 0; r < ROWS; r++)

TARGET INLINE VEC NAME(all)(float x) {
    VEC out = {0};
    return x - out;
}

TARGET INLINE VEC NAME(chosen)(NAME(ints) where, VEC yes, VEC no) {
    return (VEC)((where & (NAME(ints))yes) | (~where & (NAME(ints))no));
}

/* e^x for x <= 0, within 1.2e-7 of it (relative); 0 below -87 */
TARGET INLINE VEC NAME(power)(VEC x) {
    const NAME(ints) gone = x < -87.0f;
    x = NAME(chosen)(gone, NAME(all)(-87.0f), x);
    /* x = n ln 2 + r; adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits */
    const VEC shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const VEC r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    VEC y = NAME(all)(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const NAME(ints) exponent = ((NAME(ints))shifted - 0x4b400000 + 127) << 23;
    return NAME(chosen)(gone, NAME(all)(0), y * (VEC)exponent);
}

TARGET INLINE float NAME(total)(VEC x) {
    float out = 0;
    for (int64_t n = 0; n < LANES; n++) out += x[n];
    return out;
}

TARGET INLINE float NAME(largest)(VEC x) {
    float out = x[0];
    for (int64_t n = 1; n < LANES; n++) out = x[n] > out ? x[n] : out;
    return out;
}

/* What a thread works with, for one bag and head. */
typedef struct {
    int64_t n, first, bag, head, wide, value_wide;
    /* (tiles, width, TILE), and (tiles * TILE, wide); the same of the values */
    float *k_across, *k_along, *v_across, *v_along, *dk_across, *dv_across;
    /* of ROWS queries, (ROWS, TILE) */
    float *weights, *slopes;
    /* of a group of queries, (GROUP, wide): times the scale; gradient of the result; sums */
    float *q, *g, *sum;
    float m[GROUP], s[GROUP];
    uint64_t keys[GROUP];
} NAME(head);

/* (n, width) into tiles, transposed, zeros behind the last row */
TARGET static void NAME(across)(float *to, const float *from, int64_t stride, int64_t n, int64_t width) {
    for (int64_t j = 0; j < n; j += TILE, to += width * TILE) {
        const int64_t here = n - j < TILE ? n - j : TILE;
        for (int64_t e = 0; e < width; e++) {
            for (int64_t i = 0; i < here; i++) to[e * TILE + i] = from[(j + i) * stride + e];
            for (int64_t i = here; i < TILE; i++) to[e * TILE + i] = 0;
        }
    }
}

/* (n, width) into tiles as it is, with zeros behind the last column and row */
TARGET static void NAME(along)(float *to, const float *from, int64_t stride, int64_t n, int64_t width, int64_t wide) {
    for (int64_t i = 0; i < n; i++, to += wide, from += stride) {
        memcpy(to, from, (size_t)width * sizeof(float));
        for (int64_t e = width; e < wide; e++) to[e] = 0;
    }
    memset(to, 0, (size_t)((rounded_up(n, TILE) - n) * wide) * sizeof(float));
}

/* a group's rows from `from` on, times a factor; zeros behind the last of those that are left, and its last column */
TARGET static void NAME(rows)(float *to, const float *from, int64_t stride, int64_t left, int64_t width, int64_t wide,
                              float factor) {
    for (int64_t r = 0; r < GROUP; r++)
        for (int64_t e = 0; e < wide; e++) to[r * wide + e] = r < left && e < width ? from[r * stride + e] * factor : 0;
}

/* out(ROWS, TILE) = [out +] a(ROWS, wide) b(width, TILE), V vectors of columns at a time */
TARGET INLINE void NAME(product_part)(float *out, const float *a, const float *b, int64_t width, int64_t wide, int64_t j,
                               const int V, const int add) {
    VEC sum[ROWS][2];
    EVERY(r) for (int v = 0; v < V; v++) {
        if (add)
            sum[r][v] = READ(out + r * TILE + j + v * LANES);
        else
            sum[r][v] = NAME(all)(0);
    }
    for (int64_t e = 0; e < width; e++) {
        VEC along[2];
        for (int v = 0; v < V; v++) along[v] = READ(b + e * TILE + j + v * LANES);
        EVERY(r) for (int v = 0; v < V; v++) sum[r][v] += a[r * wide + e] * along[v];
    }
    EVERY(r) for (int v = 0; v < V; v++) AT(out + r * TILE + j + v * LANES) = sum[r][v];
}

TARGET INLINE void NAME(product)(float *out, const float *a, const float *b, int64_t width, int64_t wide, int64_t columns,
                          const int add) {
    int64_t j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES) NAME(product_part)(out, a, b, width, wide, j, 2, add);
    if (j < columns) NAME(product_part)(out, a, b, width, wide, j, 1, add);
}

/* out(ROWS, wide) += a(ROWS, TILE) b(TILE, wide) */
TARGET INLINE void NAME(gather_part)(float *out, const float *a, const float *b, int64_t wide, int64_t columns, int64_t e,
                              const int V) {
    VEC sum[ROWS][2];
    EVERY(r) for (int v = 0; v < V; v++) sum[r][v] = READ(out + r * wide + e + v * LANES);
    for (int64_t j = 0; j < columns; j++) {
        VEC row[2];
        for (int v = 0; v < V; v++) row[v] = READ(b + j * wide + e + v * LANES);
        EVERY(r) for (int v = 0; v < V; v++) sum[r][v] += a[r * TILE + j] * row[v];
    }
    EVERY(r) for (int v = 0; v < V; v++) AT(out + r * wide + e + v * LANES) = sum[r][v];
}

TARGET INLINE void NAME(gather)(float *out, const float *a, const float *b, int64_t wide, int64_t columns) {
    int64_t e = 0;
    for (; e + 2 * LANES <= wide; e += 2 * LANES) NAME(gather_part)(out, a, b, wide, columns, e, 2);
    if (e < wide) NAME(gather_part)(out, a, b, wide, columns, e, 1);
}

/* out(width, TILE) += a(ROWS, wide)^T b(ROWS, TILE) */
TARGET INLINE void NAME(spread_part)(float *out, const float *a, const float *b, int64_t width, int64_t wide, int64_t j,
                              const int V) {
    VEC row[ROWS][2];
    EVERY(r) for (int v = 0; v < V; v++) row[r][v] = READ(b + r * TILE + j + v * LANES);
    for (int64_t e = 0; e < width; e++) {
        VEC sum[2];
        for (int v = 0; v < V; v++) sum[v] = READ(out + e * TILE + j + v * LANES);
        EVERY(r) for (int v = 0; v < V; v++) sum[v] += a[r * wide + e] * row[r][v];
        for (int v = 0; v < V; v++) AT(out + e * TILE + j + v * LANES) = sum[v];
    }
}

TARGET INLINE void NAME(spread)(float *out, const float *a, const float *b, int64_t width, int64_t wide, int64_t columns) {
    int64_t j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES) NAME(spread_part)(out, a, b, width, wide, j, 2);
    if (j < columns) NAME(spread_part)(out, a, b, width, wide, j, 1);
}

TARGET INLINE NAME(ints) NAME(kinds_at)(const uint8_t *kinds) {
    /* in two steps: one instruction each, where one step is taken apart number by number */
    return __builtin_convertvector(__builtin_convertvector(*(const NAME(kind) *)kinds, NAME(shorts)), NAME(ints));
}

/* a head's addends, one for each kind of pair; shuffled where a vector holds them all */
TARGET INLINE VEC NAME(looked_up)(NAME(ints) kind, VEC table, const float *addends, int64_t n_kinds) {
#if BYTES >= 32 && defined(__GNUC__) && !defined(__clang__)
    (void)addends, (void)n_kinds;
    return __builtin_shuffle(table, kind);
#else
    (void)table;
    VEC out = NAME(all)(0);
    for (int c = 0; c < n_kinds; c++) out = NAME(chosen)(kind == c, NAME(all)(addends[c]), out);
    return out;
#endif
}

/* the kinds of query i with the keys from `start` on; rows behind the last get some row's, which nothing reads */
TARGET INLINE const uint8_t *NAME(kinds_of)(const attention_job *job, const NAME(head) *own, int64_t i, int64_t start) {
    const int64_t row = i < own->n ? i : own->n - 1;
    return job->kinds[own->bag] + row * job->kinds_stride[own->bag] + start;
}

/* logits of ROWS queries, the r0-th of a group from i on, with `here` keys from `start` on: whole vectors, minus
 * infinity behind the last key */
TARGET INLINE void NAME(logits)(const attention_job *job, const NAME(head) *own, int64_t i, int64_t r0, int64_t start,
                                int64_t here) {
    const int64_t columns = rounded_up(here, LANES);
    const float *q = own->q + r0 * own->wide, *k = own->k_across + start * job->width;
    if (job->table) {
        const float *addends = job->table + own->head * job->n_kinds;
        VEC table = NAME(all)(0);
        for (int64_t c = 0; c < job->n_kinds && c < LANES; c++) table[c] = addends[c];
        EVERY(r) {
            const uint8_t *kinds = NAME(kinds_of)(job, own, i + r0 + r, start);
            for (int64_t j = 0; j < columns; j += LANES) {
                const VEC bias = NAME(looked_up)(NAME(kinds_at)(kinds + j), table, addends, job->n_kinds);
                AT(own->weights + r * TILE + j) = bias;
            }
        }
        NAME(product)(own->weights, q, k, job->width, own->wide, columns, 1);
    } else {
        NAME(product)(own->weights, q, k, job->width, own->wide, columns, 0);
    }
    EVERY(r) for (int64_t j = here; j < columns; j++) own->weights[r * TILE + j] = -INFINITY;
}

/* what dropout makes of LANES weights: 0, or times keep */
TARGET INLINE VEC NAME(left)(const attention_job *job, uint64_t key, int64_t j, VEC weight) {
    NAME(bits) x;
    for (int64_t n = 0; n < LANES; n++) x[n] = (uint32_t)n;
    x += (uint32_t)key + (uint32_t)j;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x ^= (uint32_t)(key >> 32);
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return NAME(chosen)((NAME(ints))(x >= job->below), weight * job->keep, NAME(all)(0));
}

/* a group of queries from i on: themselves, and the keys of their hash */
TARGET INLINE void NAME(begin)(const attention_job *job, NAME(head) *own, int64_t i) {
    const float *q = job->q + (own->first + i) * job->q_stride + own->head * job->width;
    NAME(rows)(own->q, q, job->q_stride, own->n - i, job->width, own->wide, job->scale);
    const uint64_t key = mixed(job->seed ^ mixed((uint64_t)(own->bag * job->heads + own->head)));
    for (int64_t r = 0; r < GROUP && job->below; r++) own->keys[r] = mixed(key + (uint64_t)(i + r));
}

/* the r-th weights of a tile from its logits; what the sums had so far shrinks as the maximum grows */
TARGET INLINE void NAME(weigh)(const attention_job *job, NAME(head) *own, float *row, int64_t r, int64_t start,
                               int64_t columns) {
    VEC top = READ(row), sum = NAME(all)(0);
    for (int64_t j = LANES; j < columns; j += LANES) {
        const VEC x = READ(row + j);
        top = NAME(chosen)(x > top, x, top);
    }
    const float m = fmaxf(own->m[r], NAME(largest)(top)), shrunk = expf(own->m[r] - m);
    for (int64_t e = 0; e < own->value_wide && start > 0 && shrunk != 1; e++) own->sum[r * own->value_wide + e] *= shrunk;
    for (int64_t j = 0; j < columns; j += LANES) {
        const VEC weight = NAME(power)(READ(row + j) - m);
        sum += weight;
        AT(row + j) = job->below ? NAME(left)(job, own->keys[r], start + j, weight) : weight;
    }
    own->m[r] = m;
    own->s[r] = own->s[r] * shrunk + NAME(total)(sum);
}

TARGET static void NAME(forward_head)(const attention_job *job, NAME(head) *own, float *out, float *lse) {
    const float *k = job->k + own->first * job->k_stride + own->head * job->width;
    const float *v = job->v + own->first * job->v_stride + own->head * job->value_width;
    const int64_t wide = own->value_wide;
    NAME(across)(own->k_across, k, job->k_stride, own->n, job->width);
    NAME(along)(own->v_along, v, job->v_stride, own->n, job->value_width, wide);
    for (int64_t i = 0; i < own->n; i += GROUP) {
        NAME(begin)(job, own, i);
        memset(own->sum, 0, (size_t)(GROUP * wide) * sizeof(float));
        for (int64_t r = 0; r < GROUP; r++) own->m[r] = -INFINITY, own->s[r] = 0;
        for (int64_t start = 0; start < own->n; start += TILE) {
            const int64_t here = own->n - start < TILE ? own->n - start : TILE, columns = rounded_up(here, LANES);
            for (int64_t r0 = 0; r0 < GROUP && i + r0 < own->n; r0 += ROWS) {
                NAME(logits)(job, own, i, r0, start, here);
                for (int64_t r = 0; r < ROWS; r++) NAME(weigh)(job, own, own->weights + r * TILE, r0 + r, start, columns);
                NAME(gather)(own->sum + r0 * wide, own->weights, own->v_along + start * wide, wide, here);
            }
        }
        for (int64_t r = 0; r < GROUP && i + r < own->n; r++) {
            float *to = out + (own->first + i + r) * job->out_stride + own->head * job->value_width;
            for (int64_t e = 0; e < job->value_width; e++) to[e] = own->sum[r * wide + e] / own->s[r];
            lse[i + r] = own->m[r] + logf(own->s[r]);
        }
    }
}

/* weights left by dropout, and gradients of the logits, of ROWS queries and a tile */
TARGET INLINE void NAME(slope_rows)(const attention_job *job, NAME(head) *own, int64_t r0, int64_t start,
                                    int64_t columns) {
    for (int64_t r = 0; r < ROWS; r++) {
        for (int64_t j = 0; j < columns; j += LANES) {
            float *weight = own->weights + r * TILE + j, *slope = own->slopes + r * TILE + j;
            const VEC p = NAME(power)(READ(weight) - own->m[r0 + r]);
            const VEC a = job->below ? NAME(left)(job, own->keys[r0 + r], start + j, p) : p;
            AT(slope) = a * READ(slope) - p * own->s[r0 + r];
            AT(weight) = a;
        }
    }
}

/* adds the gradients of the logits up by kind of pair */
TARGET INLINE void NAME(slope_kinds)(const attention_job *job, const NAME(head) *own, double *dtable, int64_t i,
                                     int64_t start, int64_t columns) {
    VEC sums[MOST_KINDS];
    for (int c = 0; c < job->n_kinds; c++) sums[c] = NAME(all)(0);
    for (int64_t r = 0; r < ROWS; r++) {
        const uint8_t *kinds = NAME(kinds_of)(job, own, i + r, start);
        for (int64_t j = 0; j < columns; j += LANES) {
            const NAME(ints) kind = NAME(kinds_at)(kinds + j);
            const VEC slope = READ(own->slopes + r * TILE + j);
            for (int c = 0; c < job->n_kinds; c++) sums[c] += NAME(chosen)(kind == c, slope, NAME(all)(0));
        }
    }
    for (int c = 0; c < job->n_kinds; c++) dtable[c] += NAME(total)(sums[c]);
}

/* the gradients of a group of queries from i on; adds to those of keys, values and table */
TARGET INLINE void NAME(backward_group)(const attention_job *job, NAME(head) *own, const attention_gradients *to,
                                        const float *lse, double *dtable, int64_t i) {
    const int64_t left = own->n - i, row = own->first + i, width = job->width, value = job->value_width;
    const float *grad = to->grad + row * to->grad_stride + own->head * value;
    const float *out = job->out + row * job->out_stride + own->head * value;
    NAME(begin)(job, own, i);
    NAME(rows)(own->g, grad, to->grad_stride, left, value, own->value_wide, 1);
    memset(own->sum, 0, (size_t)(GROUP * own->wide) * sizeof(float));
    for (int64_t r = 0; r < GROUP; r++) {
        own->s[r] = 0;
        for (int64_t e = 0; e < value && r < left; e++)
            own->s[r] += own->g[r * own->value_wide + e] * out[r * job->out_stride + e];
        /* no weight is left of rows behind the last */
        own->m[r] = r < left ? lse[i + r] : INFINITY;
    }
    for (int64_t start = 0; start < own->n; start += TILE) {
        const int64_t here = own->n - start < TILE ? own->n - start : TILE, columns = rounded_up(here, LANES);
        for (int64_t r0 = 0; r0 < GROUP && r0 < left; r0 += ROWS) {
            const float *q = own->q + r0 * own->wide, *g = own->g + r0 * own->value_wide;
            NAME(logits)(job, own, i, r0, start, here);
            NAME(product)(own->slopes, g, own->v_across + start * value, value, own->value_wide, columns, 0);
            NAME(slope_rows)(job, own, r0, start, columns);
            if (job->table) NAME(slope_kinds)(job, own, dtable, i + r0, start, columns);
            NAME(spread)(own->dv_across + start * value, g, own->weights, value, own->value_wide, columns);
            NAME(spread)(own->dk_across + start * width, q, own->slopes, width, own->wide, columns);
            NAME(gather)(own->sum + r0 * own->wide, own->slopes, own->k_along + start * own->wide, own->wide, here);
        }
    }
    float *dq = to->dq + row * job->heads * width + own->head * width;
    for (int64_t r = 0; r < GROUP && r < left; r++)
        for (int64_t e = 0; e < width; e++) dq[r * job->heads * width + e] = own->sum[r * own->wide + e] * job->scale;
}

/* from tiles back into (n, width) with a stride */
TARGET static void NAME(back)(float *to, const float *from, int64_t stride, int64_t n, int64_t width) {
    for (int64_t j = 0; j < n; j++)
        for (int64_t e = 0; e < width; e++) to[j * stride + e] = from[(j / TILE * width + e) * TILE + j % TILE];
}

TARGET static void NAME(backward_head)(const attention_job *job, NAME(head) *own, const attention_gradients *to,
                                       const float *lse) {
    const int64_t width = job->width, value = job->value_width, tiled = rounded_up(own->n, TILE);
    const float *k = job->k + own->first * job->k_stride + own->head * width;
    const float *v = job->v + own->first * job->v_stride + own->head * value;
    NAME(across)(own->k_across, k, job->k_stride, own->n, width);
    NAME(along)(own->k_along, k, job->k_stride, own->n, width, own->wide);
    NAME(across)(own->v_across, v, job->v_stride, own->n, value);
    memset(own->dk_across, 0, (size_t)(tiled * width) * sizeof(float));
    memset(own->dv_across, 0, (size_t)(tiled * value) * sizeof(float));
    double dtable[MOST_KINDS] = {0};
    for (int64_t i = 0; i < own->n; i += GROUP) NAME(backward_group)(job, own, to, lse, dtable, i);
    for (int c = 0; c < job->n_kinds && job->table; c++)
        to->dtable[(own->bag * job->heads + own->head) * job->n_kinds + c] = (float)dtable[c];
    const int64_t stride = job->heads * width, value_stride = job->heads * value;
    NAME(back)(to->dk + own->first * stride + own->head * width, own->dk_across, stride, own->n, width);
    NAME(back)(to->dv + own->first * value_stride + own->head * value, own->dv_across, value_stride, own->n, value);
}

/* memory for the longest bag; NULL when there is none */
static float *NAME(scratch)(const attention_job *job, NAME(head) *own, int backward) {
    int64_t longest = 0;
    for (int64_t b = 0; b < job->bags; b++) {
        const int64_t n = job->bounds[b + 1] - job->bounds[b];
        longest = n > longest ? n : longest;
    }
    const int64_t tiled = rounded_up(longest, TILE);
    own->wide = rounded_up(job->width, LANES), own->value_wide = rounded_up(job->value_width, LANES);
    const int64_t sizes[] = {tiled * job->width,
                             backward ? tiled * own->wide : 0,
                             backward ? tiled * job->value_width : 0,
                             backward ? 0 : tiled * own->value_wide,
                             backward ? tiled * job->width : 0,
                             backward ? tiled * job->value_width : 0,
                             ROWS * TILE,
                             ROWS * TILE,
                             GROUP * own->wide,
                             GROUP * own->value_wide,
                             GROUP * (own->wide + own->value_wide)};
    float **parts[] = {&own->k_across, &own->k_along, &own->v_across, &own->v_along, &own->dk_across, &own->dv_across,
                       &own->weights,  &own->slopes,  &own->q,        &own->g,       &own->sum};
    int64_t all = 0;
    for (int n = 0; n < 11; n++) all += rounded_up(sizes[n], 16);
    float *memory = numbers(all);
    int64_t at = 0;
    for (int n = 0; n < 11; at += rounded_up(sizes[n++], 16)) *parts[n] = memory ? memory + at : NULL;
    return memory;
}

/* forward where there is no `to` */
static int NAME(all_heads)(const attention_job *job, float *out, const attention_gradients *to, float *lse, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        NAME(head) own;
        float *memory = NAME(scratch)(job, &own, to != NULL);
        failed = memory == NULL;
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < job->bags * job->heads; item++) {
            own.bag = item / job->heads, own.head = item % job->heads;
            own.first = job->bounds[own.bag], own.n = job->bounds[own.bag + 1] - own.first;
            float *sums = lse + own.first * job->heads + own.head * own.n;
            if (memory && to) NAME(backward_head)(job, &own, to, sums);
            if (memory && !to) NAME(forward_head)(job, &own, out, sums);
        }
        free(memory);
    }
    return failed;
}

/* out (rows, heads * value_width), and the logarithms of the sums, lse, (heads, n) of each bag one after the other */
int NAME(attention_forward)(const attention_job *job, float *out, float *lse, int threads) {
    return NAME(all_heads)(job, out, NULL, lse, threads);
}

int NAME(attention_backward)(const attention_job *job, const attention_gradients *to, float *lse, int threads) {
    return NAME(all_heads)(job, NULL, to, lse, threads);
}
#undef LANES
#undef VEC
#undef AT
#undef READ
#undef EVERY
