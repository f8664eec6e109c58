/* T steps of Sm on a CPU (paper, Equation 8), G <- alpha A G + (1 - alpha) U, and, for a trainable alpha, their
 * gradients from one sweep over the powers Q(s) = A^s grad of the incoming gradient (A is symmetric):
 * dU = sum_s c(s) Q(s) and dalpha = sum_s d(s) <Q(s), U>, with the coefficients c of G(T) and d of dG(T)/dalpha as
 * polynomials in A.
 *
 * U, G, grad are (rows, columns), row-major. A is a neighbour table: row i has `degree` pairs (index, weight) and a
 * self weight; padding is the row itself with weight 0. Given `scale` s, every weight is s(i) s(j): the steps then run
 * on s(i) G(i), whose neighbours are only added up, and rows of a lattice share their sums (sm_chains.c).
 *
 * One library has the kernel for every width of vectors a processor of its kind may have: sm_panels.c and sm_rows.c are
 * included once per width (BYTES) and number type (REAL), with functions sm_steps_float_16 and so on; the caller asks
 * sm_widest which of them the machine can run.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define PASTED(x, type, bytes) x##_##type##_##bytes
#define EXPANDED(...) PASTED(__VA_ARGS__)
#define NAME(x) EXPANDED(x, REAL, BYTES)
#include "sm_chains.c"

/* columns of a strip, 64 bytes of a row, and its vectors */
#define STRIP ((int64_t)(64 / sizeof(REAL)))
#define VECTORS (64 / BYTES)
/* strips of a block; WIDE: those of a wide panel, as many as have their sums in registers */
#define MOST 4
/* farthest neighbour with which a step over a wide panel finds its rows in the first-level cache a second time */
#define NEAR 48
/* rows that the first step is ahead of what the window of all steps needs */
#define TILE 512

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

/* what every processor of its kind has: SSE2, NEON, or else vectors that the compiler takes apart */
#define BYTES 16
#define WIDE 1
#define TARGET
#define REAL float
#include "sm_panels.c"
#define REAL double
#include "sm_panels.c"

#ifdef __x86_64__
#undef BYTES
#undef WIDE
#undef TARGET
#define BYTES 32
#define WIDE 1
#define TARGET __attribute__((target("avx2,fma")))
#define REAL float
#include "sm_panels.c"
#define REAL double
#include "sm_panels.c"

#undef BYTES
#undef WIDE
#undef TARGET
#define BYTES 64
#define WIDE 4
#define TARGET __attribute__((target("avx512f")))
#define REAL float
#include "sm_panels.c"
#define REAL double
#include "sm_panels.c"
#endif

/* the widest vectors, in bytes, that this machine has */
int sm_widest(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return 64;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 32;
#endif
    return 16;
}
