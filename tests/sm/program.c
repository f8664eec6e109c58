/* Sm's kernel as a program, for the sanitizers and for an emulator of another processor (tests/sm/test_sm_program.py).
 *
 * Standard input: cases of {double factor; int64 rows, columns, degree, steps, is_double, vector bytes} and the arrays
 * c (steps + 1 doubles), index (int32), weight, self_weight, u, other. Standard output: per case P(A) U, and as a double
 * <P(A) U, other>. Every array is an allocation of its exact size, so that the address sanitizer sees a read or a write
 * beyond it.
 */
#include "../../smmil/sm/kernel.c"
#include <stdio.h>

static void *take(size_t size) {
    void *out = malloc(size);
    if (!out || fread(out, 1, size, stdin) != size) exit(3);
    return out;
}

#define CALL(type, bytes, other, out)                                                                                  \
    sm_polynomial_##type##_##bytes(u, other, out, &product, index, weight, self_weight, n[0], n[1], n[2], factor, c,   \
                                   n[3], 1)
#define RUN(type, bytes) (CALL(type, bytes, NULL, out) || CALL(type, bytes, other, NULL))
#ifdef __x86_64__
#define SELECT(type) (n[5] == 64 ? RUN(type, 64) : n[5] == 32 ? RUN(type, 32) : RUN(type, 16))
#else
#define SELECT(type) RUN(type, 16)
#endif

int main(void) {
    double factor, product;
    while (fread(&factor, sizeof(factor), 1, stdin) == 1) {
        int64_t *n = take(6 * sizeof(int64_t));
        const size_t rows = (size_t)n[0], pairs = rows * (size_t)n[2], number = n[4] ? sizeof(double) : sizeof(float);
        const size_t size = rows * (size_t)n[1] * number;
        double *c = take((size_t)(n[3] + 1) * sizeof(double));
        int32_t *index = take(pairs * sizeof(int32_t));
        void *weight = take(pairs * number), *self_weight = take(rows * number), *u = take(size), *other = take(size);
        void *out = malloc(size);
        if (!out || (n[4] ? SELECT(double) : SELECT(float))) return 4;
        fwrite(out, 1, size, stdout);
        fwrite(&product, sizeof(product), 1, stdout);
        void *all[] = {n, c, index, weight, self_weight, u, other, out};
        for (size_t k = 0; k < sizeof(all) / sizeof(*all); k++) free(all[k]);
    }
    return 0;
}
