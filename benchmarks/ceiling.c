/* What one core could do at most: the vector instructions of an inner loop with every operand in registers, no loads, no
 * stores. Prints 10^9 binary multiply-accumulates a second, then the same for float32, each with a name.
 *
 * AVX2 counts by table: 32 lookups and 32 additions of bytes are 128 products. Exclusive or, count, add: 128 products on Arm,
 * 512 with AVX-512. */
#include <stdint.h>
#include <stdio.h>
#include <time.h>

enum { ROUNDS = 2000000, TRIES = 15 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

#if defined(__AVX512VPOPCNTDQ__)
#include <immintrin.h>
enum { PRODUCTS = 512, FLOATS = 16 };
typedef __m512i bits;
typedef __m512 reals;
#define STEP(a, x) a = _mm512_add_epi64(a, _mm512_popcnt_epi64(_mm512_xor_si512(a, x)))
#define MULTIPLY(a, x) a = _mm512_fmadd_ps(x, x, a)
#define KEEP(a) __asm__ volatile("" : "+v"(a))
#elif defined(__AVX2__)
#include <immintrin.h>
enum { PRODUCTS = 128, FLOATS = 8 };
typedef __m256i bits;
typedef __m256 reals;
#define STEP(a, x) a = _mm256_add_epi8(a, _mm256_shuffle_epi8(x, a))
#define MULTIPLY(a, x) a = _mm256_fmadd_ps(x, x, a)
#define KEEP(a) __asm__ volatile("" : "+x"(a))
#elif defined(__aarch64__)
#include <arm_neon.h>
enum { PRODUCTS = 128, FLOATS = 4 };
typedef uint8x16_t bits;
typedef float32x4_t reals;
#define STEP(a, x) a = vaddq_u8(a, vcntq_u8(veorq_u8(a, x)))
#define MULTIPLY(a, x) a = vfmaq_f32(a, x, x)
#define KEEP(a) __asm__ volatile("" : "+w"(a))
#else
#error "AVX2 or 64-bit Arm"
#endif

#define TWELVE(op, a, x) \
    op(a[0], x); op(a[1], x); op(a[2], x); op(a[3], x); op(a[4], x); op(a[5], x); \
    op(a[6], x); op(a[7], x); op(a[8], x); op(a[9], x); op(a[10], x); op(a[11], x)
#define KEEP_ALL(a) \
    KEEP(a[0]); KEEP(a[1]); KEEP(a[2]); KEEP(a[3]); KEEP(a[4]); KEEP(a[5]); \
    KEEP(a[6]); KEEP(a[7]); KEEP(a[8]); KEEP(a[9]); KEEP(a[10]); KEEP(a[11])

int main(void) {
    bits a[12] = {0}, x = {0};
    reals b[12] = {0}, y = {0};
    KEEP(x);
    KEEP(y);
    double binary = 1e9, real = 1e9;
    for (int try = 0; try < TRIES; try++) {
        double start = now();
        for (int i = 0; i < ROUNDS; i++) {
            TWELVE(STEP, a, x);
            KEEP_ALL(a);
        }
        double middle = now();
        for (int i = 0; i < ROUNDS; i++) {
            TWELVE(MULTIPLY, b, y);
            KEEP_ALL(b);
        }
        double end = now();
        if (middle - start < binary) binary = middle - start;
        if (end - middle < real) real = end - middle;
    }
    printf("binary_gmacs %.1f\nfloat_gmacs %.1f\n", 12e-9 * PRODUCTS * ROUNDS / binary, 12e-9 * FLOATS * ROUNDS / real);
    return 0;
}
