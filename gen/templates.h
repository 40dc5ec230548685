/* The files of templates/, embedded by the Makefile (tools: gen/embed.sh). */
#ifndef TEMPLATES_H
#define TEMPLATES_H

typedef struct { const char *name, *text; } Template;

extern const Template templates[];
extern const int ntemplates;
const char *template_find(const char *name);    /* its text, or NULL */

#endif
