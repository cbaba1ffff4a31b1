/* The k largest pre-activations of each token without the float32 product of all tokens and latents, and yet exactly.
 *
 * Rows of the inputs and of the encoder are rounded to 8 bits, their product is taken in integers (four times as fast as
 * float32 with AVX512-VNNI), and every pre-activation gets an upper bound by Cauchy and Schwarz: with x = x' + dx and
 * w = w' + dw,   |x . w - x' . w'| <= |dx| |w| + |x'| |dw|.   Latents with the largest bounds are computed in float32;
 * the k-th largest of those is a floor, and a latent whose bound lies below the floor cannot be among the k largest.
 * Only the others are computed too.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "rows.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#include <immintrin.h>

enum { PANEL = 32, TILE = 12, ROWS = 4 * TILE, PROBE = 4 * ROWS };

/* A row in 8 bits: x = scale * q + dx; norm = |scale * q|, slack = |dx|, both rounded up a little. */
typedef struct {
    float scale, norm, slack;
    int32_t sum;
} rounded;

static rounded round_row(const float *x, int64_t d, int8_t *q) {
    float greatest = 0;
#pragma omp simd reduction(max : greatest)
    for (int64_t j = 0; j < d; j++) greatest = fabsf(x[j]) > greatest ? fabsf(x[j]) : greatest;
    rounded r = {greatest > 1e-30f ? greatest / 127 : 1, 0, 0, 0};
    float inverse = 1 / r.scale, norm = 0, slack = 0;
    int32_t sum = 0;
#pragma omp simd reduction(+ : norm, slack, sum)
    for (int64_t j = 0; j < d; j++) {
        float rounded_to = rintf(x[j] * inverse);
        int32_t whole = (int32_t)rounded_to;
        q[j] = (int8_t)whole;
        sum += whole;
        float value = r.scale * rounded_to, rest = x[j] - value;
        norm += value * value;
        slack += rest * rest;
    }
    r.norm = 1.0001f * sqrtf(norm);
    r.slack = 1.0001f * sqrtf(slack);
    r.sum = sum;
    return r;
}

/* The encoder, rounded. A panel is PANEL latents: for each four columns, PANEL times four bytes, raised by 128 as the
 * instruction wants. terms holds, by panel, PANEL times scale, bias, the factor of a token's slack and that of its norm. */
typedef struct {
    int64_t n, n_pad, d, steps; /* latents, those of whole panels; columns, fours of them */
    const float *W, *bias;
    uint8_t *packed;
    float *terms;
} encoder;

static void pack_panel(const encoder *e, int64_t p, int8_t *scratch) {
    uint8_t *panel = e->packed + p * PANEL * e->steps * 4;
    for (int64_t i = 0; i < PANEL; i++) {
        int64_t latent = p * PANEL + i;
        int inside = latent < e->n; /* those outside have the bound -INFINITY, whatever their bytes */
        rounded w = inside ? round_row(e->W + latent * e->d, e->d, scratch) : (rounded){0};
        for (int64_t s = 0; s < e->steps; s++)
            for (int64_t c = 0; c < 4; c++) panel[(s * PANEL + i) * 4 + c] = (uint8_t)(scratch[4 * s + c] + 128);
        float *terms = e->terms + p * 4 * PANEL + i;
        terms[0] = w.scale;
        terms[PANEL] = inside ? e->bias[latent] + 1e-6f * fabsf(e->bias[latent]) : -INFINITY; /* what float32 rounds */
        terms[2 * PANEL] = w.norm + w.slack;
        terms[3 * PANEL] = w.slack + 1e-5f * w.norm; /* likewise */
    }
}

/* bounds[r][i] for TILE rows and one panel. Accumulators have names and the instruction is spelled out because GCC 12 moves
 * arrays of them, and the intrinsic's results, to the stack and back. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define START(r) __m512i a##r = _mm512_set1_epi32(-128 * tokens[r].sum), b##r = a##r;
#define ADD(r)                                            \
    xs = _mm512_set1_epi32(x[s * TILE + r]);              \
    __asm__("vpdpbusd %1, %2, %0" : "+v"(a##r) : "v"(xs), "v"(w0)); \
    __asm__("vpdpbusd %1, %2, %0" : "+v"(b##r) : "v"(xs), "v"(w1));
#define FINISH(r)                                         \
    finish(a##r, tokens + r, terms, bounds + r * stride); \
    finish(b##r, tokens + r, terms + 16, bounds + r * stride + 16);

static inline void finish(__m512i sums, const rounded *token, const float *terms, float *bounds) {
    __m512 bound = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(token->scale));
    bound = _mm512_fmadd_ps(bound, _mm512_loadu_ps(terms), _mm512_loadu_ps(terms + PANEL));
    bound = _mm512_fmadd_ps(_mm512_set1_ps(token->slack), _mm512_loadu_ps(terms + 2 * PANEL), bound);
    bound = _mm512_fmadd_ps(_mm512_set1_ps(token->norm), _mm512_loadu_ps(terms + 3 * PANEL), bound);
    _mm512_storeu_ps(bounds, bound);
}

static __attribute__((noinline)) void tile_bounds(const uint8_t *panel, const int32_t *x, const rounded *tokens,
                                                  const float *terms, int64_t steps, int64_t stride, float *bounds) {
    __m512i xs;
    EACH_ROW(START)
    for (int64_t s = 0; s < steps; s++) {
        __m512i w0 = _mm512_loadu_si512(panel + s * PANEL * 4), w1 = _mm512_loadu_si512(panel + s * PANEL * 4 + 64);
        EACH_ROW(ADD)
    }
    EACH_ROW(FINISH)
}

/* What one thread works with: ROWS tokens, their bounds [ROWS, n_pad], and candidates of one of them. */
typedef struct {
    int8_t *scratch;
    int32_t *x;
    rounded tokens[ROWS];
    float *bounds, *maxima, *found, *copy;
    int64_t *places;
} desk;

static desk new_desk(const encoder *e) {
    desk w = {calloc(e->steps, 4), calloc(ROWS * e->steps, 4)};
    w.bounds = aligned_alloc(64, sizeof(float) * ROWS * e->n_pad);
    w.maxima = malloc(sizeof(float) * e->n_pad / 16);
    w.found = malloc(sizeof(float) * e->n_pad);
    w.copy = malloc(sizeof(float) * e->n_pad);
    w.places = malloc(sizeof(int64_t) * (e->n_pad + 1));
    return w;
}

static void free_desk(desk *w) {
    free(w->scratch);
    free(w->x);
    free(w->bounds);
    free(w->maxima);
    free(w->found);
    free(w->copy);
    free(w->places);
}

/* Fills the desk's tokens and bounds; returns whether some token is not finite. */
static int bound_rows(const encoder *e, const float *inputs, int64_t rows, desk *w) {
    int bad = 0;
    for (int64_t r = 0; r < rows; r++) {
        w->tokens[r] = round_row(inputs + r * e->d, e->d, w->scratch);
        bad |= !isfinite(w->tokens[r].norm + w->tokens[r].slack);
        for (int64_t s = 0; s < e->steps; s++)
            memcpy(w->x + (r / TILE * e->steps + s) * TILE + r % TILE, w->scratch + 4 * s, 4);
    }
    int64_t panel_bytes = PANEL * e->steps * 4;
    for (int64_t p = 0; p < e->n_pad / PANEL; p++) {
        const uint8_t *panel = e->packed + p * panel_bytes;
        for (int64_t j = 0; j < panel_bytes; j += 64) __builtin_prefetch(panel + panel_bytes + j, 0, 2);
        for (int64_t r = 0; r < rows; r += TILE)
            tile_bounds(panel, w->x + r * e->steps, w->tokens + r, e->terms + p * 4 * PANEL, e->steps, e->n_pad,
                        w->bounds + r * e->n_pad + p * PANEL);
    }
    return bad;
}

/* Appends the latents with lo <= bound < hi; column j belongs to block j mod n_blocks, of which maxima are known. */
static int64_t between(const encoder *e, const float *bounds, const float *maxima, float lo, float hi, int64_t *places,
                       int64_t count) {
    int64_t n_blocks = e->n_pad / 16;
    for (int64_t j = 0; j < n_blocks; j++) {
        if (!(maxima[j] >= lo)) continue;
        for (int64_t i = j; i < e->n_pad; i += n_blocks) {
            places[count] = i;
            count += bounds[i] >= lo && bounds[i] < hi;
        }
    }
    return count;
}

/* found[c] = x . W[places[c]] + bias in float32, for first <= c < end. */
static void compute(const encoder *e, const float *x, const int64_t *places, int64_t first, int64_t end, float *found) {
    for (int64_t c = first; c < end; c++) {
        const float *w = e->W + places[c] * e->d;
        if (c + 4 < end)
            for (int64_t j = 0; j < e->d; j += 32) __builtin_prefetch(e->W + places[c + 4] * e->d + j, 0, 2);
        found[c] = dot(x, w, e->d) + e->bias[places[c]];
    }
}

/* The k largest of one token; returns how many pre-activations were computed for that, 0 where fewer than k compare. */
static int64_t select_screened(const encoder *e, const float *x, const float *bounds, int64_t k, desk *w, float *values,
                               int64_t *indices) {
    int64_t n_blocks = e->n_pad / 16;
    float *maxima = w->maxima;
    for (int64_t j = 0; j < n_blocks; j++) maxima[j] = -INFINITY;
    for (int64_t i = 0; i < e->n_pad; i += n_blocks)
#pragma omp simd
        for (int64_t j = 0; j < n_blocks; j++) maxima[j] = bounds[i + j] > maxima[j] ? bounds[i + j] : maxima[j];
    float start = k <= n_blocks ? reached_by_k(maxima, n_blocks, k) : -INFINITY;
    int64_t some = between(e, bounds, maxima, start, INFINITY, w->places, 0), count = some;
    if (some < k) return 0;
    compute(e, x, w->places, 0, some, w->found);
    memcpy(w->copy, w->found, sizeof(float) * some);
    float least = kth_largest(w->copy, some, k);
    if (least < start) count = between(e, bounds, maxima, least, start, w->places, some);
    compute(e, x, w->places, some, count, w->found);
    take_largest(w->found, w->places, w->copy, count, k, e->n, values, indices);
    return count;
}

static int finite(const encoder *e) {
    int bad = 0;
#pragma omp simd reduction(| : bad)
    for (int64_t i = 0; i < 4 * e->n_pad; i++) bad |= e->terms[i] != e->terms[i] || e->terms[i] == INFINITY;
    return !bad;
}

static encoder new_encoder(const float *W, const float *bias, int64_t n, int64_t d) {
    int64_t steps = (d + 3) / 4, panels = (n + PANEL - 1) / PANEL;
    encoder e = {n, panels * PANEL, d, steps, W, bias, aligned_alloc(64, panels * PANEL * steps * 4),
                 aligned_alloc(64, sizeof(float) * panels * 4 * PANEL)};
#pragma omp parallel
    {
        int8_t *scratch = calloc(steps, 4);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) pack_panel(&e, p, scratch);
        free(scratch);
    }
    return e;
}

static void free_encoder(encoder *e) {
    free(e->packed);
    free(e->terms);
}

/* As select_topk of inputs @ W^T + bias; W is [n, d]. Gives up where bounds are of no use: where there is NaN or Inf, and
 * when the first rows need more than `limit` latents each. Returns 0, or 1 having given up. */
int64_t screened_topk(const float *inputs, const float *W, const float *bias, int64_t rows, int64_t n, int64_t d, int64_t k,
                      int64_t limit, float *values, int64_t *indices) {
    int64_t computed = 0, probe = rows < PROBE ? rows : PROBE;
    encoder e = new_encoder(W, bias, n, d);
    int bad = !finite(&e), go_on = 1;
#pragma omp parallel
    {
        desk w = new_desk(&e);
        for (int64_t first = 0; first < rows; first = first ? rows : probe) {
            int64_t end = first ? rows : probe;
#pragma omp single
            go_on = !bad && computed <= limit * probe;
            if (go_on) {
#pragma omp for schedule(dynamic, 1) reduction(+ : computed) reduction(| : bad)
                for (int64_t start = first; start < end; start += ROWS) {
                    int64_t here = start + ROWS <= end ? ROWS : end - start;
                    bad |= bound_rows(&e, inputs + start * d, here, &w);
                    for (int64_t r = 0; r < here; r++) {
                        int64_t row = start + r;
                        int64_t count = select_screened(&e, inputs + row * d, w.bounds + r * e.n_pad, k, &w,
                                                        values + row * k, indices + row * k);
                        bad |= count == 0;
                        if (first == 0) computed += count;
                    }
                }
            }
        }
        free_desk(&w);
    }
    free_encoder(&e);
    return bad || computed > limit * probe;
}

/* The places (row * n + column) of inputs @ W^T + bias whose bound reaches `least`, in order, and their bounds. There is room
 * for room + n of them a thread. Returns how many there are; -1 having given up: more than that, or NaN or Inf. */
int64_t screened_places(const float *inputs, const float *W, const float *bias, int64_t rows, int64_t n, int64_t d,
                        float least, int64_t room, int64_t threads, float *bounds, int64_t *places, int64_t *counts) {
    encoder e = new_encoder(W, bias, n, d);
    int bad = !finite(&e);
    int64_t blocks = (rows + ROWS - 1) / ROWS, whole = room + n;
#pragma omp parallel for schedule(static, 1) reduction(| : bad)
    for (int64_t t = 0; t < threads; t++) {
        desk w = new_desk(&e);
        int64_t count = 0, last = blocks * (t + 1) / threads;
        for (int64_t block = blocks * t / threads; block < last && !bad; block++) {
            int64_t start = block * ROWS, here = start + ROWS <= rows ? ROWS : rows - start;
            bad |= bound_rows(&e, inputs + start * d, here, &w);
            for (int64_t r = 0; r < here && !bad; r++) {
                count = append_reaching(w.bounds + r * e.n_pad, NULL, n, least, (start + r) * n, bounds + t * whole,
                                        places + t * whole, count);
                bad |= count >= room;
            }
        }
        counts[t] = count;
        free_desk(&w);
    }
    free_encoder(&e);
    return bad ? -1 : close_gaps(bounds, places, counts, threads, whole);
}
#else
int64_t screened_topk(const float *inputs, const float *W, const float *bias, int64_t rows, int64_t n, int64_t d, int64_t k,
                      int64_t limit, float *values, int64_t *indices) {
    (void)inputs, (void)W, (void)bias, (void)rows, (void)n, (void)d, (void)k, (void)limit, (void)values, (void)indices;
    return 1;
}

int64_t screened_places(const float *inputs, const float *W, const float *bias, int64_t rows, int64_t n, int64_t d,
                        float least, int64_t room, int64_t threads, float *bounds, int64_t *places, int64_t *counts) {
    (void)inputs, (void)W, (void)bias, (void)rows, (void)n, (void)d, (void)least, (void)room, (void)threads;
    (void)bounds, (void)places, (void)counts;
    return -1;
}
#endif

/* values[c] = the pre-activation at places[c], in float32, where lo <= bounds[c] < hi; others are left as they are. */
void compute_places(const float *inputs, const float *W, const float *bias, int64_t n, int64_t d, const float *bounds,
                    const int64_t *places, int64_t count, float lo, float hi, float *values) {
    enum { AHEAD = 6 };
#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < count; c++) {
        if (c + AHEAD < count && bounds[c + AHEAD] >= lo && bounds[c + AHEAD] < hi)
            for (int64_t j = 0; j < d; j += 32) __builtin_prefetch(W + places[c + AHEAD] % n * d + j, 0, 2);
        if (bounds[c] < lo || bounds[c] >= hi) continue;
        int64_t row = places[c] / n, latent = places[c] - row * n;
        values[c] = dot(inputs + row * d, W + latent * d, d) + bias[latent];
    }
}
