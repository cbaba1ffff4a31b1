/* The kernels of reference.py for CPUs, in float32. Compiled once by the machine's own C compiler (see cpu.py).
 *
 * Every loop over rows is an OpenMP loop; the OpenMP runtime is the one that torch has loaded, so that both share
 * one pool of threads. Results do not depend on the number of threads: each output row is written by one thread,
 * in the order of its pairs.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "rows.h"

/* The k largest of each row of x + bias; of equal values the lower indices win; the order within a row is free.
 *
 * Column j of a row belongs to block j mod n_blocks. What at least k block maxima reach, at least k values reach, and
 * blocks whose maximum does not reach it hold none of those: only the few others are searched.
 * Returns the number of rows with fewer than k values that compare at all (NaN), which it leaves to the caller. */
int64_t select_topk(const float *products, const float *bias, int64_t rows, int64_t n, int64_t k, float *values,
                    int64_t *indices) {
    int64_t n_blocks = (n + 15) / 16, bad = 0;
#pragma omp parallel reduction(+ : bad)
    {
        float *maxima = malloc(sizeof(float) * (n_blocks + 2 * n));
        float *found = maxima + n_blocks, *scratch = found + n;
        int64_t *places = malloc(sizeof(int64_t) * n);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            const float *x = products + r * n;
            for (int64_t j = 0; j < n_blocks; j++) maxima[j] = -INFINITY;
            for (int64_t start = 0; start < n; start += n_blocks) {
                int64_t width = start + n_blocks <= n ? n_blocks : n - start;
#pragma omp simd
                for (int64_t j = 0; j < width; j++) {
                    float sum = x[start + j] + bias[start + j];
                    maxima[j] = sum > maxima[j] ? sum : maxima[j];
                }
                if (r + 1 < rows) /* the next row comes while this one is searched */
                    for (int64_t j = 0; j < width; j += 16) __builtin_prefetch(x + n + start + j, 0, 2);
            }
            float least = k <= n_blocks ? reached_by_k(maxima, n_blocks, k) : -INFINITY;
            int64_t count = 0;
            for (int64_t j = 0; j < n_blocks; j++) {
                if (maxima[j] < least) continue;
                for (int64_t i = j; i < n; i += n_blocks) {
                    float sum = x[i] + bias[i];
                    found[count] = sum;
                    places[count] = i;
                    count += sum >= least;
                }
            }
            if (count < k) {
                bad++;
                continue;
            }
            take_largest(found, places, scratch, count, k, n, values + r * k, indices + r * k);
        }
        free(maxima);
        free(places);
    }
    return bad;
}

/* In place: ReLU, and 0 for all but the k largest of each row; of equal values the lower columns stay.
 *
 * Bits of positive floats are ordered as the floats are, so the k-th largest is found by bisection of its bits. */
void keep_topk(float *acts, int64_t rows, int64_t n, int64_t k) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float *x = acts + r * n;
        int32_t positive = 0, high = 0, low = 1;
#pragma omp simd reduction(+ : positive) reduction(max : high)
        for (int64_t j = 0; j < n; j++) {
            x[j] = x[j] > 0 ? x[j] : 0;
            int32_t bits;
            memcpy(&bits, x + j, 4);
            positive += bits > 0;
            high = bits > high ? bits : high;
        }
        if (positive <= k) continue;
        int32_t count = positive; /* of those that reach low; fewer than k reach beyond high */
        while (count != k && low < high) {
            int32_t middle = low + (high - low + 1) / 2, reach = 0;
#pragma omp simd reduction(+ : reach)
            for (int64_t j = 0; j < n; j++) {
                int32_t bits;
                memcpy(&bits, x + j, 4);
                reach += bits >= middle;
            }
            if (reach >= k) low = middle, count = reach;
            else high = middle - 1;
        }
        float least;
        memcpy(&least, &low, 4);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) x[j] = x[j] >= least ? x[j] : 0;
        for (int64_t j = n - 1; count > k; j--) { /* too many equal ones */
            if (x[j] != least) continue;
            x[j] = 0;
            count--;
        }
    }
}

/* The n-th largest of x[0 .. count), 0 where fewer than n are positive. Bits of positive floats are ordered as the floats are:
 * counting by the upper half tells which upper half the n-th has, counting those by the lower half tells the rest. */
float nth_largest(const float *x, int64_t count, int64_t n) {
    int64_t *counts = malloc(sizeof(int64_t) << 16);
    uint32_t upper = 0, found = 0;
    for (int half = 0; half < 2; half++) {
        memset(counts, 0, sizeof(int64_t) << 16);
        for (int64_t i = 0; i < count; i++) {
            uint32_t bits;
            memcpy(&bits, x + i, 4);
            if (!(x[i] > 0)) continue;
            if (half == 0) counts[bits >> 16]++;
            else if (bits >> 16 == upper) counts[bits & 0xffff]++;
        }
        int64_t bin = 0xffff;
        while (bin >= 0 && counts[bin] < n) n -= counts[bin--];
        if (bin < 0) break; /* fewer than n are positive */
        if (half == 0) upper = (uint32_t)bin;
        else found = upper << 16 | (uint32_t)bin;
    }
    free(counts);
    float value;
    memcpy(&value, &found, 4);
    return value;
}

/* The k largest of `values`, all positive or 0, of equal ones the first, moved to the front in their order; returns k. */
int64_t keep_largest(float *values, int64_t *places, int64_t count, int64_t k) {
    float kth = nth_largest(values, count, k);
    int64_t equal = k, out = 0;
    for (int64_t i = 0; i < count; i++) equal -= values[i] > kth;
    for (int64_t i = 0; i < count && out < k; i++) {
        if (values[i] < kth || (values[i] == kth && equal-- <= 0)) continue;
        values[out] = values[i];
        places[out++] = places[i];
    }
    return out;
}

/* What reaches `bound` in rows of x + bias, in order of (row, column): values, and places = first_place + row * n + column.
 *
 * Each thread takes consecutive rows and has room for 2 * n_pairs + n; when 2 * n_pairs are there, the n_pairs largest
 * stay and the thread's bound rises to the least of them. Returns how many were found. */
int64_t collect(const float *products, const float *bias, int64_t rows, int64_t n, float bound, int64_t first_place,
                int64_t n_pairs, int64_t threads, float *values, int64_t *places, int64_t *counts) {
    int64_t room = 2 * n_pairs + n;
#pragma omp parallel for schedule(static, 1)
    for (int64_t t = 0; t < threads; t++) {
        float *v = values + t * room, least = bound;
        int64_t *at = places + t * room, count = 0;
        for (int64_t r = rows * t / threads; r < rows * (t + 1) / threads; r++) {
            count = append_reaching(products + r * n, bias, n, least, first_place + r * n, v, at, count);
            if (count >= 2 * n_pairs) {
                count = keep_largest(v, at, count, n_pairs);
                least = v[0];
                for (int64_t i = 1; i < count; i++) least = v[i] < least ? v[i] : least;
            }
        }
        counts[t] = count;
    }
    return close_gaps(values, places, counts, threads, room);
}

/* Pairs of bag b: offsets[b] .. offsets[b + 1), or b * k .. (b + 1) * k where offsets is NULL. A token has `nested` bags,
 * and what a bag adds is in its own reconstruction and in those of the token's later bags. */
void token_pass(const float *acts, const float *values, const int64_t *indices, const int64_t *offsets,
                const float *W_dec, const float *b_dec, float scale, int64_t tokens, int64_t nested, int64_t k, int64_t d,
                float *recons_grad, float *pair_grads, float *sq_error) {
    int64_t pairs = offsets ? offsets[tokens * nested] : tokens * k;
#pragma omp parallel for schedule(dynamic, 64)
    for (int64_t b = 0; b < tokens; b++) {
        const float *x = acts + b * d;
        float *g = recons_grad + b * nested * d;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) g[j] = b_dec[j] - x[j];
        for (int64_t bag = b * nested; bag < (b + 1) * nested; bag++) {
            int64_t first = offsets ? offsets[bag] : bag * k, end = offsets ? offsets[bag + 1] : first + k;
            if (bag > b * nested) {
                memcpy(g + d, g, sizeof(float) * d);
                g += d;
            }
            for (int64_t p = first; p < end; p++) {
                const float *w = W_dec + indices[p] * d;
                float z = values[p];
                if (p + 4 < pairs)
                    for (int64_t j = 0; j < d; j += 16) __builtin_prefetch(W_dec + indices[p + 4] * d + j, 0, 2);
#pragma omp simd
                for (int64_t j = 0; j < d; j++) g[j] += z * w[j];
            }
        }
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < d; j++) total += g[j] * g[j];
        sq_error[b] = total;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) g[j] *= scale;
        for (int64_t bag = (b + 1) * nested - 1; bag >= b * nested; bag--) {
            int64_t first = offsets ? offsets[bag] : bag * k, end = offsets ? offsets[bag + 1] : first + k;
            for (int64_t p = first; p < end; p++) pair_grads[p] = dot(g, W_dec + indices[p] * d, d);
            if (bag > b * nested) { /* the errors of the later reconstructions reach the bag before too */
                g -= d;
#pragma omp simd
                for (int64_t j = 0; j < d; j++) g[j] = scale * g[j] + g[j + d];
            }
        }
    }
}

/* Counting sort of the pairs by latent. offsets has n + 1 places, order one for each pair. */
void regroup(const int64_t *indices, int64_t pairs, int64_t n, int64_t *order, int64_t *offsets) {
    memset(offsets, 0, sizeof(int64_t) * (n + 1));
    for (int64_t p = 0; p < pairs; p++) offsets[indices[p] + 1]++;
    for (int64_t i = 0; i < n; i++) offsets[i + 1] += offsets[i];
    int64_t *next = malloc(sizeof(int64_t) * n);
    memcpy(next, offsets, sizeof(int64_t) * n);
    for (int64_t p = 0; p < pairs; p++) order[next[indices[p]]++] = p;
    free(next);
}

typedef struct {
    int32_t bag, token;
    float z, grad; /* the pair's value and the gradient at it */
} firing;

/* The pairs above zero, by latent: those of latent i are out[starts[i] .. starts[i + 1]), in order of bags. */
static void group_firings(const float *values, const float *pair_grads, const int64_t *indices, const int64_t *offsets,
                          int64_t tokens, int64_t nested, int64_t k, int64_t n, int64_t *starts, firing *out) {
    int64_t pairs = offsets ? offsets[tokens * nested] : tokens * k;
    memset(starts, 0, sizeof(int64_t) * (n + 2));
    for (int64_t p = 0; p < pairs; p++) starts[indices[p] + 2] += values[p] > 0;
    for (int64_t i = 0; i < n; i++) starts[i + 2] += starts[i + 1];
    for (int64_t bag = 0; bag < tokens * nested; bag++) {
        int64_t first = offsets ? offsets[bag] : bag * k, end = offsets ? offsets[bag + 1] : first + k;
        for (int64_t p = first; p < end; p++)
            if (values[p] > 0)
                out[starts[indices[p] + 1]++] = (firing){(int32_t)bag, (int32_t)(bag / nested), values[p], pair_grads[p]};
    }
}

enum { WIDTH = 2 * LANES, LATENT_BLOCK = 128 };

/* WIDTH columns of recons_grad, a row a bag, and of inputs, a row a token. Side by side where a token is one bag. */
typedef struct {
    float *grads, *inputs;
    int64_t stride;
} columns;

/* Gradients of the columns in `held` for latents first .. end. */
static void latent_columns(columns held, const firing *pairs, const int64_t *starts, int64_t first, int64_t end,
                           int64_t width, int64_t d, float *dec_grad, float *enc_grad) {
    for (int64_t i = first; i < end; i++) {
        vec gd0 = {0}, gd1 = {0}, ge0 = {0}, ge1 = {0};
        for (int64_t q = starts[i]; q < starts[i + 1]; q++) {
            const vec *grads = (const vec *)(held.grads + pairs[q].bag * held.stride);
            const vec *inputs = (const vec *)(held.inputs + pairs[q].token * held.stride);
            float z = pairs[q].z, grad = pairs[q].grad;
            gd0 += z * grads[0];
            gd1 += z * grads[1];
            ge0 += grad * inputs[0];
            ge1 += grad * inputs[1];
        }
        float *gd = dec_grad + i * d, *ge = enc_grad + i * d;
        if (width == WIDTH) {
            ((vec *)gd)[0] = gd0, ((vec *)gd)[1] = gd1;
            ((vec *)ge)[0] = ge0, ((vec *)ge)[1] = ge1;
        } else {
            vec sums[4] = {gd0, gd1, ge0, ge1};
            memcpy(gd, sums, sizeof(float) * width);
            memcpy(ge, sums + 2, sizeof(float) * width);
        }
    }
}

/* Column by column group: the gathered rows of a group stay in a core's cache while all latents add up theirs, in
 * registers. Those of nested bags do too, as neighbouring latents are in the same bag of every token. */
void latent_pass(const float *recons_grad, const float *inputs, const float *values, const float *pair_grads,
                 const int64_t *indices, const int64_t *offsets, const float *W_dec, int64_t tokens, int64_t nested,
                 int64_t n, int64_t k, int64_t d, float *dec_grad, float *enc_grad, float *bias_grad, uint8_t *fired) {
    int64_t bags = tokens * nested, pairs = offsets ? offsets[bags] : tokens * k;
    int64_t groups = (d + WIDTH - 1) / WIDTH, blocks = (n + LATENT_BLOCK - 1) / LATENT_BLOCK;
    int64_t *starts = malloc(sizeof(int64_t) * (n + 2));
    firing *firings = malloc(sizeof(firing) * (pairs + 1));
    group_firings(values, pair_grads, indices, offsets, tokens, nested, k, n, starts, firings);
#pragma omp parallel
    {
        float *table = aligned_alloc(64, sizeof(float) * WIDTH * (bags + tokens + 2));
        columns held = {table, table + (nested == 1 ? 1 : bags) * WIDTH, (nested == 1 ? 2 : 1) * WIDTH};
        int64_t held_column = -1;
#pragma omp for schedule(static)
        for (int64_t work = 0; work < groups * blocks; work++) {
            int64_t column = work / blocks * WIDTH, first = work % blocks * LATENT_BLOCK;
            int64_t width = column + WIDTH <= d ? WIDTH : d - column, end = first + LATENT_BLOCK;
            if (held_column != column) {
                for (int64_t b = 0; b < tokens; b++) {
                    for (int64_t bag = b * nested; bag < (b + 1) * nested; bag++)
                        memcpy(held.grads + bag * held.stride, recons_grad + bag * d + column, sizeof(float) * width);
                    memcpy(held.inputs + b * held.stride, inputs + b * d + column, sizeof(float) * width);
                }
                held_column = column;
            }
            latent_columns(held, firings, starts, first, end < n ? end : n, width, d, dec_grad + column,
                           enc_grad + column);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            float *gd = dec_grad + i * d, along = 0, bias = 0;
            const float *w = W_dec + i * d;
            for (int64_t q = starts[i]; q < starts[i + 1]; q++) bias += firings[q].grad;
            bias_grad[i] = bias;
            fired[i] = starts[i + 1] > starts[i];
#pragma omp simd reduction(+ : along)
            for (int64_t j = 0; j < d; j++) along += gd[j] * w[j];
#pragma omp simd
            for (int64_t j = 0; j < d; j++) gd[j] -= along * w[j];
        }
        free(table);
    }
    free(firings);
    free(starts);
}
