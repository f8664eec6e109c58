/* Sm's kernel as a program, for the sanitizers and for an emulator of another processor (tests/test_sm_program.py).
 *
 * Standard input: cases of {double alpha; int64 rows, columns, degree, steps, is_double, bytes, has_scale} and the arrays
 * c, d (steps + 1 doubles), index (int32), weight, self_weight, [scale], u, grad. Standard output: per case G(T), the
 * gradient of U, and as a double that of alpha. Every array is an allocation of its own and of its exact size, so that
 * whoever watches memory sees a read or a write beyond it.
 */
#include "../smmil/sm_kernel.c"
#include <stdio.h>

static void *take(size_t size) {
    void *out = malloc(size);
    if (!out || fread(out, 1, size, stdin) != size) exit(3);
    return out;
}

#define RUN(type, bytes)                                                                                              \
    (sm_steps_##type##_##bytes(u, g, index, weight, self_weight, scale, n[0], n[1], n[2], alpha, n[3], 1) ||           \
     sm_gradients_##type##_##bytes(grad, u, grad_u, &slope, c, d, index, weight, self_weight, scale, n[0], n[1], n[2], \
                                   n[3], 1))
#ifdef __x86_64__
#define WIDEST(type) (n[5] == 64 ? RUN(type, 64) : n[5] == 32 ? RUN(type, 32) : RUN(type, 16))
#else
#define WIDEST(type) RUN(type, 16)
#endif

int main(void) {
    double alpha, slope;
    while (fread(&alpha, sizeof(alpha), 1, stdin) == 1) {
        int64_t *n = take(7 * sizeof(int64_t));
        const size_t rows = (size_t)n[0], number = n[4] ? sizeof(double) : sizeof(float), size = rows * (size_t)n[1] * number;
        double *c = take((size_t)(n[3] + 1) * sizeof(double)), *d = take((size_t)(n[3] + 1) * sizeof(double));
        int32_t *index = take(rows * (size_t)n[2] * sizeof(int32_t));
        void *weight = take(rows * (size_t)n[2] * number), *self_weight = take(rows * number);
        void *scale = n[6] ? take(rows * number) : NULL, *u = take(size), *grad = take(size);
        void *g = malloc(size), *grad_u = malloc(size);
        if (!g || !grad_u || (n[4] ? WIDEST(double) : WIDEST(float))) return 4;
        fwrite(g, 1, size, stdout);
        fwrite(grad_u, 1, size, stdout);
        fwrite(&slope, sizeof(slope), 1, stdout);
        void *all[] = {n, c, d, index, weight, self_weight, scale, u, grad, g, grad_u};
        for (size_t k = 0; k < sizeof(all) / sizeof(*all); k++) free(all[k]);
    }
    return 0;
}
