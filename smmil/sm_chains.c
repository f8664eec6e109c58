/* Where the rows of a neighbour table follow each other like the cells of a lattice line; included by sm_kernel.c.
 *
 * A chain is a range of rows whose closed neighbourhoods N[i] (the neighbours and i itself) are each the disjoint union
 * of three columns of at most three rows, N[i] = C(i-1) + C(i) + C(i+1), with i in C(i). The sum over the neighbours of
 * row i then shares two columns with that of row i + 1: a row costs the reading of one new column instead of eight
 * neighbours. On a lattice with eight neighbours stored line by line, C(i) is the cell with those above and below it.
 * Nothing is assumed about the table: every row is checked, borders and holes make columns shorter, and a row without
 * this structure is left out.
 *
 * Table: (rows, degree) of row numbers; an entry equal to its own row is padding.
 */

/* Rows first..last - 1; `triples` are the columns C(first-1)..C(last) of three rows each, NULL if this is no chain.
 * The middle one of a triple is the row itself except in the two outer columns; `rows` stands for a missing one. */
typedef struct {
    int64_t first, last;
    int32_t *triples;
} segment;

/* Segments cover all rows in order. `run`, of a row of a chain: so many rows from this one on have the same scale, and
 * the columns after them go on by one row each. */
typedef struct {
    segment *segments;
    int32_t *triples, *run;
    int64_t count;
} chains;

#define CLOSED 9

/* N[i] in `out`, room for CLOSED; how many, 0 if the row is in no chain: too many, or not in ascending order */
static int closed(const int32_t *index, int64_t degree, int64_t i, int32_t *out) {
    int count = 0;
    int32_t before = -1;
    for (int64_t k = 0; k < degree; k++) {
        const int32_t next = index[i * degree + k];
        if (next == (int32_t)i) continue;
        if (next <= before || count == CLOSED - 1) return 0;
        out[count++] = before = next;
    }
    out[count++] = (int32_t)i;
    return count;
}

static int has(const int32_t *set, int count, int64_t row) {
    int found = 0;
    for (int k = 0; k < count; k++) found |= set[k] == row;
    return found;
}

/* The column after the two from `pair` on, for row i; 0 if N[i] is not of that form. */
static int third_column(const int32_t *index, int64_t rows, int64_t degree, int64_t i, const int32_t *pair,
                        int32_t *column) {
    int32_t all[CLOSED];
    const int count = closed(index, degree, i, all);
    int left = 0, taken = 0;
    for (int k = 0; k < 6; k++) taken += pair[k] != rows;
    for (int k = 0; k < 3; k++) column[k] = (int32_t)rows;
    for (int k = 0; k < count; k++) {
        if (has(pair, 6, all[k])) continue;
        if (left == 3) return 0;
        column[left++] = all[k];
    }
    return count && count - left == taken;
}

/* Columns C(i-1) and C(i) of a chain that starts with row i: what only N[i] has, and what N[i] and N[i+1] have and
 * N[i+2] has not. */
static int first_columns(const int32_t *index, int64_t rows, int64_t degree, int64_t i, int32_t *pair) {
    int32_t here[CLOSED], next[CLOSED], after[CLOSED];
    const int count = closed(index, degree, i, here);
    if (!has(here, count, i + 1)) return 0;
    const int nexts = closed(index, degree, i + 1, next), afters = closed(index, degree, i + 2, after);
    int outer = 0, inner = 3;
    for (int k = 0; k < 6; k++) pair[k] = (int32_t)rows;
    for (int k = 0; k < count; k++) {
        const int only = !has(next, nexts, here[k]);
        if (!only && has(after, afters, here[k])) continue;
        if (only ? outer == 3 : inner == 6) return 0;
        pair[only ? outer++ : inner++] = here[k];
    }
    return 1;
}

/* puts `row` into the middle of a column; 0 if it is not there */
static int centre(int32_t *column, int64_t row) {
    for (int k = 0; k < 3; k++)
        if (column[k] == row) {
            column[k] = column[1], column[1] = (int32_t)row;
            return 1;
        }
    return 0;
}

/* whether b is a, one row further on; a missing row stays missing, and the last row has none after it */
static int one_on(const int32_t *a, const int32_t *b, int64_t rows) {
    int same = 1;
    for (int k = 0; k < 3; k++) same &= a[k] == rows ? b[k] == rows : b[k] == a[k] + 1 && b[k] != rows;
    return same;
}

/* The row after the last one of the longest chain from row i on, i if there is none; `triples` receives its columns. */
static int64_t follow(const int32_t *index, const uint8_t *plain, int64_t rows, int64_t degree, int64_t i,
                      int32_t *triples) {
    if (i + 2 >= rows || !plain[i] || !first_columns(index, rows, degree, i, triples)) return i;
    int steady = 0;
    for (; i < rows && plain[i] && centre(triples + 3, i); i++, triples += 3) {
        if (steady) {
            /* a row that is the one before it, one further on, needs no closer look */
            const int32_t *now = index + i * degree;
            int32_t differs = 0;
            for (int64_t k = 0; k < degree; k++) differs |= now[k] ^ (now[k - degree] + 1);
            if (!differs) {
                for (int k = 0; k < 3; k++) triples[6 + k] = triples[3 + k] + (triples[3 + k] != rows);
                continue;
            }
        }
        if (!third_column(index, rows, degree, i, triples, triples + 6)) break;
        int32_t right[3];
        memcpy(right, triples + 6, sizeof(right));
        steady = centre(right, i + 1) && one_on(triples, triples + 3, rows) && one_on(triples + 3, right, rows);
    }
    return i;
}

/* The segments of a table; rows that are not `plain` go into no chain; `like`: of the same scale as the row before.
 * 0 if memory ran out. */
static int find_chains(chains *found, const int32_t *index, const uint8_t *plain, const uint8_t *like, int64_t rows,
                       int64_t degree) {
    /* a chain has at least three rows, and two columns more */
    found->triples = malloc((size_t)(5 * rows + 9) * sizeof(int32_t));
    found->segments = malloc((size_t)(rows + 1) * sizeof(segment));
    found->run = malloc((size_t)(rows + 1) * sizeof(int32_t));
    found->count = 0;
    if (!found->run || !found->triples || !found->segments) return 0;
    int32_t *triples = found->triples;
    segment *now = NULL;
    for (int64_t i = 0; i < rows;) {
        const int64_t last = follow(index, plain, rows, degree, i, triples);
        if (last >= i + 3) {
            now = found->segments + found->count++;
            *now = (segment){i, last, triples};
            triples += 3 * (last - i + 2);
            const int32_t *column = triples - 6;
            found->run[last - 1] = 1;
            for (int64_t k = last - 2; k >= i; k--, column -= 3)
                found->run[k] = like[k + 1] && one_on(column, column + 3, rows) ? found->run[k + 1] + 1 : 1;
            i = last;
        } else {
            if (!now || now->triples) {
                now = found->segments + found->count++;
                *now = (segment){i, i, NULL};
            }
            now->last = ++i;
        }
    }
    return 1;
}
