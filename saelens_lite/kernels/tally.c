/* The feature index on a CPU: tables of every latent's firings in one sweep over a block (see analyze/index/tally.py, which defines
 * it), and which latents fire together (analyze/index/cofiring.py). Results do not depend on the number of threads: each latent
 * belongs to one thread, which meets its firings in order.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* firing_hash of saelens_lite/hashing.py */
static inline int64_t firing_hash(uint64_t seed, int64_t latent, int64_t row) {
    uint64_t x = (uint64_t)(latent + 1) * 0x9E3779B97F4A7C15u + (uint64_t)row * 0xD1B54A32D192ED03u + seed;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (int64_t)((x ^ (x >> 31)) >> 1);
}

/* Puts a firing into a sorted list of `kept` with room for n, behind the first `place`. */
static inline void insert(float *values, int64_t *rows, int64_t kept, int64_t n, int64_t place, float value, int64_t row) {
    int64_t moved = (kept < n ? kept : n - 1) - place;
    memmove(values + place + 1, values + place, sizeof(float) * moved);
    memmove(rows + place + 1, rows + place, sizeof(int64_t) * moved);
    values[place] = value;
    rows[place] = row;
}

/* Pairs of `rows` tokens, k of each or by offsets, into the tables of n latents. Of a list of n places, the first
 * min(firings so far, n) are taken. Bins of activations are quarters of an octave, from 2^-8 on. */
void tally(const float *values, const int64_t *indices, const int64_t *offsets, int64_t rows, int64_t k, int64_t first_row,
           const uint8_t *row_bins, int64_t seed, int64_t threads, int64_t n, int64_t n_bins, int64_t n_position_bins,
           int64_t n_top, int64_t n_sample, int64_t *counts, int64_t *first_fired, int64_t *last_fired, int32_t *histogram,
           int32_t *positions, float *top_values, int64_t *top_rows, float *sample_values, int64_t *sample_rows) {
    (void)n;
#pragma omp parallel for schedule(static, 1)
    for (int64_t t = 0; t < threads; t++) {
        for (int64_t r = 0; r < rows; r++) {
            int64_t first = offsets ? offsets[r] : r * k, end = offsets ? offsets[r + 1] : first + k, row = first_row + r;
            for (int64_t p = first; p < end; p++) {
                int64_t i = indices[p];
                float value = values[p];
                if ((i >> 4) % threads != t || !(value > 0)) continue; /* 16 neighbours fill whole cache lines */
                int64_t before = counts[i]++;
                if (row < first_fired[i]) first_fired[i] = row;
                if (row > last_fired[i]) last_fired[i] = row;
                int32_t bits;
                memcpy(&bits, &value, 4);
                int64_t bin = (bits >> 21) - (127 - 8) * 4;
                bin = bin < 0 ? 0 : bin >= n_bins ? n_bins - 1 : bin;
                histogram[i * n_bins + bin]++;
                if (row_bins) positions[i * n_position_bins + row_bins[r]]++;
                float *v = top_values + i * n_top;
                if (n_top && value > v[n_top - 1]) {
                    int64_t kept = before < n_top ? before : n_top, place = kept;
                    while (place > 0 && value > v[place - 1]) place--;
                    insert(v, top_rows + i * n_top, kept, n_top, place, value, row);
                }
                if (!n_sample) continue;
                int64_t *s = sample_rows + i * n_sample, kept = before < n_sample ? before : n_sample;
                int64_t hash = firing_hash(seed, i, row);
                if (kept == n_sample && hash >= firing_hash(seed, i, s[n_sample - 1])) continue;
                int64_t low = 0, high = kept; /* equal hashes stand in the order of their rows: behind */
                while (low < high) {
                    int64_t middle = (low + high) / 2;
                    if (firing_hash(seed, i, s[middle]) <= hash) low = middle + 1;
                    else high = middle;
                }
                insert(sample_values + i * n_sample, s, kept, n_sample, low, value, row);
            }
        }
    }
}

/* Puts latent j into a list of m by score, largest first; of equal scores the lower latents come first. */
static inline void offer(int32_t *ids, double *scores, int64_t m, int32_t j, double score) {
    int64_t place = m;
    while (place > 0 && (ids[place - 1] < 0 || score > scores[place - 1] || (score == scores[place - 1] && j < ids[place - 1])))
        place--;
    if (place == m) return;
    memmove(ids + place + 1, ids + place, sizeof(int32_t) * (m - 1 - place));
    memmove(scores + place + 1, scores + place, sizeof(double) * (m - 1 - place));
    ids[place] = j;
    scores[place] = score;
}

/* For each of n latents the m nearest by Jaccard and by lift (meetings / firings of the other), the latter of those that met
 * min_together times. latents[offsets[r] .. offsets[r + 1]) fire on row r; rows[starts[i] .. starts[i + 1]) are those of latent
 * i. The lists come with ids -1. */
void cofiring(const int64_t *offsets, const int32_t *latents, const int64_t *starts, const int64_t *rows, int64_t n, int64_t m,
              int64_t min_together, int32_t *jaccard_ids, int32_t *lift_ids, double *jaccard, double *lift) {
#pragma omp parallel
    {
        int32_t *together = calloc(n, sizeof(int32_t)), *met = malloc(sizeof(int32_t) * n);
#pragma omp for schedule(dynamic, 16)
        for (int64_t i = 0; i < n; i++) {
            int64_t n_met = 0;
            for (int64_t p = starts[i]; p < starts[i + 1]; p++)
                for (int64_t q = offsets[rows[p]]; q < offsets[rows[p] + 1]; q++)
                    if (together[latents[q]]++ == 0) met[n_met++] = latents[q];
            double own = (double)(starts[i + 1] - starts[i]);
            for (int64_t e = 0; e < n_met; e++) {
                int32_t j = met[e];
                double both = together[j], others = (double)(starts[j + 1] - starts[j]);
                together[j] = 0;
                if (j == i) continue;
                offer(jaccard_ids + i * m, jaccard + i * m, m, j, both / (own + others - both));
                if (both >= min_together) offer(lift_ids + i * m, lift + i * m, m, j, both / others);
            }
        }
        free(together);
        free(met);
    }
}

/* For latents first .. first + n, the rows on which each fires with each of m others, and the sums of their products there. The
 * others are those of offsets and latents, as in cofiring; rows[starts[i] .. starts[i + 1]) with own_values are those of latent i.
 * Both tables come with zeros. */
void meetings(const int64_t *offsets, const int32_t *latents, const float *values, const int64_t *starts, const int64_t *rows,
              const float *own_values, int64_t first, int64_t n, int64_t m, int32_t *together, double *dot) {
#pragma omp parallel for schedule(dynamic, 16)
    for (int64_t i = 0; i < n; i++)
        for (int64_t p = starts[first + i]; p < starts[first + i + 1]; p++)
            for (int64_t q = offsets[rows[p]]; q < offsets[rows[p] + 1]; q++) {
                together[i * m + latents[q]]++;
                dot[i * m + latents[q]] += (double)own_values[p] * values[q];
            }
}
