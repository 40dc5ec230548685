/* UTF-8, as far as diagnostics and the spec need it. */
#ifndef UTF8_H
#define UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the character at s (n are left); 0 when it is not valid UTF-8. */
int utf8_decode(const char *s, size_t n, uint32_t *c);

/* Whether a terminal shows c and does nothing else with it: no control
 * character, line separator or change of writing direction. */
bool utf8_visible(uint32_t c);

#endif
