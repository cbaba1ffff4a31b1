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

/* The k-th largest of x[0 .. n), by quickselect; x is reordered. */
static float kth_largest(float *x, int64_t n, int64_t k) {
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
static float reached_by_k(const float *x, int64_t n, int64_t k) {
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
            memcpy(scratch, found, sizeof(float) * count);
            float kth = kth_largest(scratch, count, k);
            int64_t out = r * k, end = out + k;
            for (int64_t i = 0; i < count; i++) {
                if (found[i] > kth) {
                    values[out] = found[i];
                    indices[out++] = places[i];
                }
            }
            for (int64_t last = -1; out < end; out++) { /* equal to the k-th: the lowest indices first */
                int64_t next = n;
                for (int64_t i = 0; i < count; i++)
                    if (found[i] == kth && places[i] > last && places[i] < next) next = places[i];
                values[out] = kth;
                indices[out] = last = next;
            }
        }
        free(maxima);
        free(places);
    }
    return bad;
}

void token_pass(const float *acts, const float *values, const int64_t *indices, const float *W_dec,
                const float *b_dec, float scale, int64_t tokens, int64_t k, int64_t d, float *recons_grad,
                float *pair_grads, float *sq_error) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < tokens; b++) {
        float *g = recons_grad + b * d;
        const float *x = acts + b * d;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) g[j] = b_dec[j] - x[j];
        for (int64_t p = b * k; p < (b + 1) * k; p++) {
            const float *w = W_dec + indices[p] * d;
            float z = values[p];
            if (p + 4 < tokens * k)
                for (int64_t j = 0; j < d; j += 16) __builtin_prefetch(W_dec + indices[p + 4] * d + j, 0, 2);
#pragma omp simd
            for (int64_t j = 0; j < d; j++) g[j] += z * w[j];
        }
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < d; j++) total += g[j] * g[j];
        sq_error[b] = total;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) g[j] *= scale;
        for (int64_t p = b * k; p < (b + 1) * k; p++) {
            const float *w = W_dec + indices[p] * d;
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t j = 0; j < d; j++) dot += g[j] * w[j];
            pair_grads[p] = dot;
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

void latent_pass(const float *recons_grad, const float *inputs, const float *values, const float *pair_grads,
                 const int64_t *order, const int64_t *offsets, const float *W_dec, int64_t n, int64_t k, int64_t d,
                 float *dec_grad, float *enc_grad, float *bias_grad, uint8_t *fired) {
#pragma omp parallel for schedule(dynamic, 64)
    for (int64_t i = 0; i < n; i++) {
        float *gd = dec_grad + i * d, *ge = enc_grad + i * d;
        const float *w = W_dec + i * d;
        float bias = 0;
        memset(gd, 0, sizeof(float) * d);
        memset(ge, 0, sizeof(float) * d);
        fired[i] = 0;
        for (int64_t q = offsets[i]; q < offsets[i + 1]; q++) {
            float z = values[order[q]], pre = pair_grads[order[q]];
            if (!(z > 0)) continue;
            const float *g = recons_grad + (order[q] / k) * d, *x = inputs + (order[q] / k) * d;
            if (q + 3 < offsets[n]) {
                int64_t ahead = (order[q + 3] / k) * d;
                for (int64_t j = 0; j < d; j += 16) {
                    __builtin_prefetch(recons_grad + ahead + j, 0, 2);
                    __builtin_prefetch(inputs + ahead + j, 0, 2);
                }
            }
            fired[i] = 1;
            bias += pre;
#pragma omp simd
            for (int64_t j = 0; j < d; j++) {
                gd[j] += z * g[j];
                ge[j] += pre * x[j];
            }
        }
        bias_grad[i] = bias;
        float along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < d; j++) along += gd[j] * w[j];
#pragma omp simd
        for (int64_t j = 0; j < d; j++) gd[j] -= along * w[j];
    }
}
