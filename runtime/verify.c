#include "../gen/verbs.h"
int verify(Arena *a, const Model *m, const VerifyOpts *o) { (void)a; (void)m; (void)o; die("verify: not yet"); }
