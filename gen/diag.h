/* Diagnostics on the user's spec: collected, sorted, shown with a caret. */
#ifndef DIAG_H
#define DIAG_H

#include "base.h"

/* file is interned; line and col count from 1, bytes; len is what ~ marks */
typedef struct { const char *file; int line, col, len; } Loc;

typedef struct Diag Diag;

Diag *diag_new(Arena *a);
/* Remember the text of a file (or "--set") so that lines can be shown. */
void diag_source(Diag *d, const char *file, const char *text, size_t len);
void diag_error(Diag *d, Loc loc, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));
/* A note belongs to the error before it. */
void diag_note(Diag *d, Loc loc, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));
int diag_count(const Diag *d);          /* errors so far; at most 20 are kept */
/* Print everything, sorted by position, then "hcgen: N errors". */
void diag_flush(Diag *d, FILE *f);

#endif
