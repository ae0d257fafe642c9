/* Ways to count differing bits on x86-64, on one tile after another as a binary layer has them: PIXELS rows of BITS bits
 * against CHANNELS rows of weights, all in the first-level cache, counts of 32 bits out. What a layer does besides (gathering,
 * scale, bits) is left out. Every way must give the counts of the plain loop; prints "NAME 10^9-products-a-second" lines. */
#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef INPUTS
#define INPUTS 128 /* channels of a 3x3 layer's input */
#endif

enum { PIXELS = 4, CHANNELS = 64, BITS = 3 * 3 * INPUTS, BYTES = BITS / 8, STEPS = BYTES / 16, TRIES = 40, ROUNDS = 400 };

static uint8_t rows[PIXELS][BYTES], weights[CHANNELS][BYTES];
static uint32_t expected[PIXELS][CHANNELS], counts[PIXELS][CHANNELS];
static __attribute__((aligned(64))) uint8_t by_step[CHANNELS / 2][STEPS][2][16]; /* two channels side by side */
static __attribute__((aligned(64))) uint8_t by_byte[BYTES][CHANNELS];            /* channels side by side */
static __attribute__((aligned(64))) uint8_t by_word[CHANNELS / 8][BYTES / 8][8][8];
static __attribute__((aligned(64))) uint8_t tables[16][16];
static uint8_t places[PIXELS][2 * BYTES];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static __m256i twice(const uint8_t *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p)); }
static __m256i load(const uint8_t *p) { return _mm256_load_si256((const __m256i *)p); }

/* The bits of each byte: two lookups in the counts of four bits (W. Mula's). */
static __m256i bits_of_bytes(__m256i x) {
    const __m256i few = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i four = _mm256_set1_epi8(15);
    return _mm256_add_epi8(_mm256_shuffle_epi8(few, _mm256_and_si256(x, four)),
                           _mm256_shuffle_epi8(few, _mm256_and_si256(_mm256_srli_epi16(x, 4), four)));
}

static void store_two(int pixel, int pair, __m256i sums) { /* four sums of 64 bits, two a channel */
    uint64_t found[4];
    memcpy(found, &sums, sizeof found);
    counts[pixel][2 * pair] = (uint32_t)(found[0] + found[1]);
    counts[pixel][2 * pair + 1] = (uint32_t)(found[2] + found[3]);
}

/* Byte by byte: counts of bytes are added, at most 31 of 8, and then summed. */
static void bytes(void) {
    for (int pair = 0; pair < CHANNELS / 2; pair++) {
        __m256i totals[PIXELS] = {0};
        for (int first = 0; first < STEPS; first += 31) {
            __m256i sums[PIXELS] = {0};
            for (int k = first; k < STEPS && k < first + 31; k++) {
                __m256i w = load(by_step[pair][k][0]);
                for (int p = 0; p < PIXELS; p++)
                    sums[p] = _mm256_add_epi8(sums[p], bits_of_bytes(_mm256_xor_si256(w, twice(rows[p] + 16 * k))));
            }
            for (int p = 0; p < PIXELS; p++)
                totals[p] = _mm256_add_epi64(totals[p], _mm256_sad_epu8(sums[p], _mm256_setzero_si256()));
        }
        for (int p = 0; p < PIXELS; p++) store_two(p, pair, totals[p]);
    }
}

#define ADD(carry, sum, a, b, c) /* a full adder in every bit */                                 \
    do {                                                                                         \
        __m256i half = _mm256_xor_si256(a, b), third = c;                                        \
        carry = _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(half, third));          \
        sum = _mm256_xor_si256(half, third);                                                     \
    } while (0)

/* Harley-Seal: eight steps are added bit by bit, and only what carries to eight is counted. */
static void harley_seal(void) {
    for (int pair = 0; pair < CHANNELS / 2; pair++)
        for (int p = 0; p < PIXELS; p++) {
            __m256i zero = _mm256_setzero_si256(), one = zero, two = zero, four = zero, eights = zero;
            int k = 0;
#define X(i) _mm256_xor_si256(load(by_step[pair][k + i][0]), twice(rows[p] + 16 * (k + i)))
            for (; k + 8 <= STEPS; k += 8) {
                __m256i a, b, c, d, eight;
                ADD(a, one, one, X(0), X(1));
                ADD(b, one, one, X(2), X(3));
                ADD(c, two, two, a, b);
                ADD(a, one, one, X(4), X(5));
                ADD(b, one, one, X(6), X(7));
                ADD(d, two, two, a, b);
                ADD(eight, four, four, c, d);
                eights = _mm256_add_epi8(eights, bits_of_bytes(eight));
            }
            __m256i rest = _mm256_slli_epi16(bits_of_bytes(four), 2); /* at most 8 · (4 + 2 + 1 + 7) in a byte */
            rest = _mm256_add_epi8(rest, _mm256_slli_epi16(bits_of_bytes(two), 1));
            rest = _mm256_add_epi8(rest, bits_of_bytes(one));
            for (; k < STEPS; k++) rest = _mm256_add_epi8(rest, bits_of_bytes(X(0)));
            __m256i many = _mm256_slli_epi64(_mm256_sad_epu8(eights, zero), 3);
            store_two(p, pair, _mm256_add_epi64(many, _mm256_sad_epu8(rest, zero)));
        }
}

/* Tables of the pixel's four bits, looked up by the weights' (compiler/lower/kernels/table_product.py). */
static void table(void) {
    const __m256i four = _mm256_set1_epi8(15);
    uint16_t totals[PIXELS][CHANNELS] = {0};
    for (int first = 0; first < BYTES; first += 31) {
        __m256i sums[PIXELS][2] = {0};
        for (int k = first; k < BYTES && k < first + 31; k++)
            for (int half = 0; half < 2; half++)
                for (int v = 0; v < 2; v++) {
                    __m256i w = load(by_byte[k] + 32 * v);
                    w = _mm256_and_si256(half ? _mm256_srli_epi16(w, 4) : w, four);
                    for (int p = 0; p < PIXELS; p++)
                        sums[p][v] = _mm256_add_epi8(sums[p][v], _mm256_shuffle_epi8(twice(tables[0] + places[p][2 * k + half]), w));
                }
        for (int p = 0; p < PIXELS; p++)
            for (int v = 0; v < 2; v++) {
                uint8_t found[32];
                memcpy(found, &sums[p][v], sizeof found);
                for (int c = 0; c < 32; c++) totals[p][32 * v + c] += found[c];
            }
    }
    for (int p = 0; p < PIXELS; p++)
        for (int c = 0; c < CHANNELS; c++) counts[p][c] = totals[p][c];
}

#define WIDE __attribute__((target("avx512f,avx512vl,avx512vpopcntdq"))) static

WIDE __m512i word(int p, int k) {
    int64_t x;
    memcpy(&x, rows[p] + 8 * k, 8);
    return _mm512_set1_epi64(x);
}

WIDE void store_eight(int p, int block, __m512i sums) {
    _mm256_storeu_si256((__m256i *)&counts[p][8 * block], _mm512_cvtepi64_epi32(sums));
}

/* vpopcntq: 64 bits of eight channels (compiler/lower/kernels/micro.py, AVX512). */
WIDE void words(void) {
    for (int block = 0; block < CHANNELS / 8; block++) {
        __m512i sums[PIXELS] = {0};
        for (int k = 0; k < BYTES / 8; k++) {
            __m512i w = _mm512_load_si512(by_word[block][k]);
            for (int p = 0; p < PIXELS; p++)
                sums[p] = _mm512_add_epi64(sums[p], _mm512_popcnt_epi64(_mm512_xor_si512(w, word(p, k))));
        }
        for (int p = 0; p < PIXELS; p++) store_eight(p, block, sums[p]);
    }
}

/* The same with a full adder in front, three vpternlogq for two words: half as many counts. */
WIDE void words_added(void) {
    for (int block = 0; block < CHANNELS / 8; block++) {
        __m512i sums[PIXELS] = {0}, ones[PIXELS] = {0};
        for (int k = 0; k < BYTES / 8; k += 2) {
            __m512i v = _mm512_load_si512(by_word[block][k]), w = _mm512_load_si512(by_word[block][k + 1]);
            for (int p = 0; p < PIXELS; p++) {
                __m512i first = _mm512_ternarylogic_epi64(ones[p], v, word(p, k), 0x96);
                __m512i both = _mm512_ternarylogic_epi64(first, w, word(p, k + 1), 0x96);
                __m512i carry = _mm512_ternarylogic_epi64(ones[p], first, both, 0x74); /* first ? first ^ both : ones */
                ones[p] = both;
                sums[p] = _mm512_add_epi64(sums[p], _mm512_popcnt_epi64(carry));
            }
        }
        for (int p = 0; p < PIXELS; p++)
            store_eight(p, block, _mm512_add_epi64(_mm512_slli_epi64(sums[p], 1), _mm512_popcnt_epi64(ones[p])));
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} ways[] = {
    {"bytes", bytes},
    {"harley-seal", harley_seal},
    {"tables", table},
    {"words", words},
    {"words-added", words_added},
};
enum { WAYS = sizeof ways / sizeof *ways, WITH_AVX2 = 3 };

int main(void) {
    srand(1);
    for (int p = 0; p < PIXELS; p++)
        for (int k = 0; k < BYTES; k++) {
            rows[p][k] = (uint8_t)(rand() >> 7);
            places[p][2 * k] = (uint8_t)(rows[p][k] << 4);
            places[p][2 * k + 1] = rows[p][k] & 0xF0;
        }
    for (int c = 0; c < CHANNELS; c++)
        for (int k = 0; k < BYTES; k++) {
            uint8_t w = weights[c][k] = (uint8_t)(rand() >> 7);
            by_step[c / 2][k / 16][c % 2][k % 16] = by_byte[k][c] = by_word[c / 8][k / 8][c % 8][k % 8] = w;
        }
    for (int x = 0; x < 16; x++)
        for (int w = 0; w < 16; w++) tables[x][w] = (uint8_t)__builtin_popcount((unsigned)(x ^ w));
    for (int p = 0; p < PIXELS; p++)
        for (int c = 0; c < CHANNELS; c++)
            for (int k = 0; k < BYTES; k++) expected[p][c] += (uint32_t)__builtin_popcount((unsigned)(rows[p][k] ^ weights[c][k]));
    double least[WAYS];
    unsigned a, b, c = 0, d;
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    const int here = c & bit_AVX512VPOPCNTDQ ? WAYS : WITH_AVX2;
    for (int i = 0; i < here; i++) {
        least[i] = 1e9;
        memset(counts, 0, sizeof counts);
        ways[i].run();
        if (memcmp(counts, expected, sizeof counts)) return fprintf(stderr, "%s: wrong counts\n", ways[i].name), 1;
    }
    for (int t = 0; t < TRIES; t++) /* in turns, so that a changing clock hits all */
        for (int i = 0; i < here; i++) {
            double start = now();
            for (int r = 0; r < ROUNDS; r++) {
                ways[i].run();
                __asm__ volatile("" ::: "memory");
            }
            double took = now() - start;
            if (took < least[i]) least[i] = took;
        }
    for (int i = 0; i < here; i++)
        printf("%s %.1f\n", ways[i].name, 1e-9 * PIXELS * CHANNELS * BITS * ROUNDS / least[i]);
    return 0;
}
