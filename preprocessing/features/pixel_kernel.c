/* Resize and normalise 8-bit RGB tiles on a CPU.
 *
 * resize_u8: (height, width, 3) -> (out_height, out_width, 3) uint8. Each output is a weighted sum of neighbours, along
 * rows first, rounded to a byte, then along columns. The caller computes the weights: 16-bit fixed point with `precision`
 * fractional bits, in pairs because one instruction multiplies a pair. Each row is resized just before it is needed, so
 * that it is still in the cache.
 *
 * normalise_u8: (count, 3) uint8 -> (count, 3) float32, (value - shift) / scale per channel.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* One direction: output i is the sum of inputs first[i]... times the 2 * pairs weights at weight + 2 * pairs * i. */
typedef struct {
    const int32_t *first;
    const int16_t *weight;
    int64_t pairs;
    int precision;
} axis;

/* Tests define PLAIN to build the portable code. */
#if defined(__x86_64__) && !defined(PLAIN)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
/* bytes that a load may read, or a store write, beyond the end of a row */
#define SLACK 32
/* resized rows kept beyond those of one output row; few enough for the L1 cache */
#define AHEAD 16

int resize_supported(void) { return __builtin_cpu_supports("avx2"); }

INLINE AVX2 __m256i pair_of(const int16_t *weight) {
    int32_t pair;
    memcpy(&pair, weight, sizeof(pair));
    return _mm256_set1_epi32(pair);
}

/* One output pixel of two rows, one row in each half of the register: red, green, blue, unused, 32 bits each. */
INLINE AVX2 __m256i shrink_pixel(const uint8_t *a, const uint8_t *b, axis x, int64_t i, const int64_t pairs) {
    /* from RGBRGB bytes to the 16-bit pairs R R, G G, B B */
    const __m128i half = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const __m256i apart = _mm256_broadcastsi128_si256(half);
    const uint8_t *from_a = a + 3 * (int64_t)x.first[i], *from_b = b + 3 * (int64_t)x.first[i];
    __m256i sum = _mm256_set1_epi32(1 << (x.precision - 1));
    for (int64_t k = 0; k < pairs; k++) {
        const __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(from_a + 6 * k)));
        const __m256i both = _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i *)(from_b + 6 * k)), 1);
        const __m256i values = _mm256_shuffle_epi8(both, apart);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(values, pair_of(x.weight + 2 * (i * pairs + k))));
    }
    return _mm256_sra_epi32(sum, _mm_cvtsi32_si128(x.precision));
}

/* Two rows. Callers pass `pairs` as a constant to unroll the loop. The next store overwrites the bytes beyond a pixel. */
INLINE AVX2 void shrink_rows(const uint8_t *a, const uint8_t *b, uint8_t *out_a, uint8_t *out_b, int64_t out_width,
                             axis x, const int64_t pairs) {
    const __m128i half = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const __m256i close = _mm256_broadcastsi128_si256(half);
    int64_t i = 0;
    for (; i + 4 <= out_width; i += 4) {
        const __m256i first = _mm256_packs_epi32(shrink_pixel(a, b, x, i, pairs), shrink_pixel(a, b, x, i + 1, pairs));
        const __m256i second =
            _mm256_packs_epi32(shrink_pixel(a, b, x, i + 2, pairs), shrink_pixel(a, b, x, i + 3, pairs));
        const __m256i four = _mm256_shuffle_epi8(_mm256_packus_epi16(first, second), close);
        _mm_storeu_si128((__m128i *)(out_a + 3 * i), _mm256_castsi256_si128(four));
        _mm_storeu_si128((__m128i *)(out_b + 3 * i), _mm256_extracti128_si256(four, 1));
    }
    for (; i < out_width; i++) {
        __m256i pixel = shrink_pixel(a, b, x, i, pairs);
        pixel = _mm256_packs_epi32(pixel, pixel);
        pixel = _mm256_packus_epi16(pixel, pixel);
        const int32_t first = _mm256_cvtsi256_si32(pixel), second = _mm256_extract_epi32(pixel, 4);
        memcpy(out_a + 3 * i, &first, 4);
        memcpy(out_b + 3 * i, &second, 4);
    }
}

AVX2 static void shrink_two(const uint8_t *a, const uint8_t *b, uint8_t *out_a, uint8_t *out_b, int64_t out_width,
                            axis x) {
    switch (x.pairs) {
    case 2: shrink_rows(a, b, out_a, out_b, out_width, x, 2); break;
    case 3: shrink_rows(a, b, out_a, out_b, out_width, x, 3); break;
    case 4: shrink_rows(a, b, out_a, out_b, out_width, x, 4); break;
    default: shrink_rows(a, b, out_a, out_b, out_width, x, x.pairs);
    }
}

/* 32 columns of one output row. */
INLINE AVX2 __m256i shrink_columns(const uint8_t *rows, int64_t stride, const int16_t *weight, int64_t pairs,
                                   int precision) {
    const __m256i zero = _mm256_setzero_si256(), round = _mm256_set1_epi32(1 << (precision - 1));
    const __m128i shift = _mm_cvtsi32_si128(precision);
    __m256i sum[4] = {round, round, round, round};
    for (int64_t k = 0; k < pairs; k++) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)(rows + 2 * k * stride));
        const __m256i b = _mm256_loadu_si256((const __m256i *)(rows + (2 * k + 1) * stride));
        const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b), w = pair_of(weight + 2 * k);
        sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), w));
        sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), w));
        sum[2] = _mm256_add_epi32(sum[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), w));
        sum[3] = _mm256_add_epi32(sum[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), w));
    }
    for (int i = 0; i < 4; i++) sum[i] = _mm256_sra_epi32(sum[i], shift);
    return _mm256_packus_epi16(_mm256_packs_epi32(sum[0], sum[1]), _mm256_packs_epi32(sum[2], sum[3]));
}

/* `shrunk` holds up to `room` resized rows from row `kept` on; when it is full, the rows still needed move to its start. */
AVX2 static void resize(const uint8_t *in, uint8_t *out, int64_t height, int64_t width, int64_t out_height,
                        int64_t out_width, axis x, axis y, uint8_t *shrunk, int64_t room, int64_t stride,
                        uint8_t *padded) {
    const int64_t line = 3 * width, out_line = 3 * out_width;
    int64_t farthest = 0, done = 0, kept = 0;
    for (int64_t i = 0; i < out_width; i++) farthest = x.first[i] > farthest ? x.first[i] : farthest;
    /* bytes from the start of a row that loads may read */
    const int64_t reach = 3 * farthest + 6 * x.pairs + SLACK;
    for (int64_t i = 0; i < out_height; i++) {
        int64_t needed = y.first[i] + 2 * y.pairs;
        needed = needed < height ? needed : height;
        for (; done < needed; done += 2) {
            if (done + 2 > kept + room) {
                const int64_t from = y.first[i] < done ? y.first[i] : done;
                memmove(shrunk, shrunk + (from - kept) * stride, (size_t)((done - from) * stride));
                kept = from;
            }
            const int64_t second = done + 1 < height ? done + 1 : done;
            const uint8_t *a = in + done * line, *b = in + second * line;
            if (second * line + reach > height * line) {
                memcpy(padded, a, (size_t)line);
                memcpy(padded + reach, b, (size_t)line);
                a = padded, b = padded + reach;
            }
            uint8_t *to = shrunk + (done - kept) * stride;
            shrink_two(a, b, to, to + stride, out_width, x);
        }
        const uint8_t *rows = shrunk + (y.first[i] - kept) * stride;
        const int16_t *weight = y.weight + 2 * y.pairs * i;
        uint8_t *to = out + i * out_line;
        int64_t c = 0;
        for (; c + 32 <= out_line; c += 32)
            _mm256_storeu_si256((__m256i *)(to + c), shrink_columns(rows + c, stride, weight, y.pairs, y.precision));
        if (c < out_line) {
            uint8_t rest[32];
            _mm256_storeu_si256((__m256i *)rest, shrink_columns(rows + c, stride, weight, y.pairs, y.precision));
            memcpy(to + c, rest, (size_t)(out_line - c));
        }
    }
}

/* Returns 1 if memory cannot be allocated. */
int resize_u8(const uint8_t *in, uint8_t *out, int64_t height, int64_t width, int64_t out_height, int64_t out_width,
              const int32_t *x_first, const int16_t *x_weight, int64_t x_pairs, int x_precision,
              const int32_t *y_first, const int16_t *y_weight, int64_t y_pairs, int y_precision) {
    const axis x = {x_first, x_weight, x_pairs, x_precision}, y = {y_first, y_weight, y_pairs, y_precision};
    const int64_t stride = (3 * out_width + 31) / 32 * 32 + SLACK, reach = 3 * width + 6 * x_pairs + SLACK;
    /* rows beyond the last are read with weight 0 */
    const int64_t room = 2 * y_pairs + AHEAD;
    uint8_t *shrunk = malloc((size_t)((room + 2 * y_pairs) * stride));
    uint8_t *padded = calloc(2, (size_t)reach);
    const int failed = !shrunk || !padded;
    if (!failed) resize(in, out, height, width, out_height, out_width, x, y, shrunk, room, stride, padded);
    free(shrunk);
    free(padded);
    return failed;
}

/* Normalises eight pixels at a time; returns the number of pixels done. */
AVX2 static int64_t normalise_eights(const uint8_t *in, float *out, int64_t count, const float *shift,
                                     const float *scale) {
    float shifts[24], scales[24];
    for (int i = 0; i < 24; i++) shifts[i] = shift[i % 3], scales[i] = scale[i % 3];
    __m256 minus[3], over[3];
    for (int k = 0; k < 3; k++) minus[k] = _mm256_loadu_ps(shifts + 8 * k), over[k] = _mm256_loadu_ps(scales + 8 * k);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int k = 0; k < 3; k++) {
            const __m128i bytes = _mm_loadl_epi64((const __m128i *)(in + 3 * i + 8 * k));
            const __m256 value = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
            _mm256_storeu_ps(out + 3 * i + 8 * k, _mm256_div_ps(_mm256_sub_ps(value, minus[k]), over[k]));
        }
    return i;
}
#else
int resize_supported(void) { return 0; }

int resize_u8(const uint8_t *in, uint8_t *out, int64_t height, int64_t width, int64_t out_height, int64_t out_width,
              const int32_t *x_first, const int16_t *x_weight, int64_t x_pairs, int x_precision,
              const int32_t *y_first, const int16_t *y_weight, int64_t y_pairs, int y_precision) {
    return 1;
}

static int64_t normalise_eights(const uint8_t *in, float *out, int64_t count, const float *shift, const float *scale) {
    return 0;
}
#endif

void normalise_u8(const uint8_t *in, float *out, int64_t count, const float *shift, const float *scale) {
    int64_t i = resize_supported() ? normalise_eights(in, out, count, shift, scale) : 0;
    for (; i < count; i++)
        for (int c = 0; c < 3; c++) out[3 * i + c] = ((float)in[3 * i + c] - shift[c]) / scale[c];
}
