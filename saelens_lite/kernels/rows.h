/* What cpu.c and screen.c do with one row. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
enum { LANES = 16 };

static inline float sum_of(vec v) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

/* x . w, in four sums so that additions need not wait for each other. */
static inline float dot(const float *x, const float *w, int64_t d) {
    vec a = {0}, b = {0}, c = {0}, e = {0};
    int64_t j = 0;
    for (; j + 4 * LANES <= d; j += 4 * LANES) {
        const vec *xs = (const vec *)(x + j), *ws = (const vec *)(w + j);
        a += xs[0] * ws[0];
        b += xs[1] * ws[1];
        c += xs[2] * ws[2];
        e += xs[3] * ws[3];
    }
    float rest = 0;
    for (; j < d; j++) rest += x[j] * w[j];
    return sum_of((a + b) + (c + e)) + rest;
}

/* The k-th largest of x[0 .. n), by quickselect; x is reordered. */
static inline float kth_largest(float *x, int64_t n, int64_t k) {
    int64_t lo = 0, hi = n - 1, want = k - 1;
    while (lo < hi) {
        float pivot = x[lo + (hi - lo) / 2];
        int64_t i = lo, j = hi;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) {
                float t = x[i];
                x[i++] = x[j];
                x[j--] = t;
            }
        }
        if (want <= j) hi = j;
        else if (want >= i) lo = i;
        else break;
    }
    return x[want];
}

/* A value that at least k of x[0 .. n) reach, and seldom many more: bisection, without a branch that depends on x. */
static inline float reached_by_k(const float *x, int64_t n, int64_t k) {
    float low = INFINITY, high = -INFINITY;
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int64_t i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    for (int step = 0; step < 16; step++) {
        float middle = low + (high - low) / 2;
        int count = 0;
#pragma omp simd reduction(+ : count)
        for (int64_t i = 0; i < n; i++) count += x[i] >= middle;
        if (count >= k) low = middle;
        else high = middle;
        if (count >= k && count <= k + k / 8) break;
    }
    return low; /* with infinities `middle` may be NaN, which nothing reaches: low stays a value that all reach */
}

/* The k <= count largest of found[0 .. count) with their places; of equal ones the lowest places, all below n. */
static inline void take_largest(const float *found, const int64_t *places, float *scratch, int64_t count, int64_t k,
                                int64_t n, float *values, int64_t *indices) {
    memcpy(scratch, found, sizeof(float) * count);
    float kth = kth_largest(scratch, count, k);
    int64_t out = 0;
    for (int64_t i = 0; i < count; i++) {
        if (found[i] > kth) {
            values[out] = found[i];
            indices[out++] = places[i];
        }
    }
    for (int64_t last = -1; out < k; out++) { /* equal to the k-th */
        int64_t next = n;
        for (int64_t i = 0; i < count; i++)
            if (found[i] == kth && places[i] > last && places[i] < next) next = places[i];
        values[out] = kth;
        indices[out] = last = next;
    }
}

enum { SPAN = 64 };

/* Whether some x[j] + bias[j] of SPAN columns reaches `least`; bias may be NULL. */
static inline int some_reach(const float *x, const float *bias, float least) {
    int some = 0;
    if (bias) {
#pragma omp simd reduction(| : some)
        for (int j = 0; j < SPAN; j++) some |= x[j] + bias[j] >= least;
    } else {
#pragma omp simd reduction(| : some)
        for (int j = 0; j < SPAN; j++) some |= x[j] >= least;
    }
    return some;
}

/* Appends what reaches `least` in a row of n, in order of columns: values and places = first_place + column. */
static inline int64_t append_reaching(const float *x, const float *bias, int64_t n, float least, int64_t first_place,
                                      float *values, int64_t *places, int64_t count) {
    for (int64_t start = 0; start < n; start += SPAN) {
        int64_t end = start + SPAN <= n ? start + SPAN : n;
        if (end - start == SPAN && !some_reach(x + start, bias ? bias + start : NULL, least)) continue;
        for (int64_t j = start; j < end; j++) {
            float value = bias ? x[j] + bias[j] : x[j];
            values[count] = value;
            places[count] = first_place + j;
            count += value >= least;
        }
    }
    return count;
}

/* Closes the gaps between the counts[t] entries that each thread left in its `room`; returns how many there are. */
static inline int64_t close_gaps(float *values, int64_t *places, const int64_t *counts, int64_t threads, int64_t room) {
    int64_t total = 0;
    for (int64_t t = 0; t < threads; t++) {
        memmove(values + total, values + t * room, sizeof(float) * counts[t]);
        memmove(places + total, places + t * room, sizeof(int64_t) * counts[t]);
        total += counts[t];
    }
    return total;
}
