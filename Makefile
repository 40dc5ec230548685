# make run    train specs/tiny.yaml on text found on this machine
# make test   everything that can be tested here; ends with "N passed, N failed, N skipped"
# Both install the Debian packages they need when those are missing (tools/deps.sh).

CC = gcc
WARN = -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Werror
CFLAGS = -std=c11 -O2 -g $(WARN)
LDLIBS = -lyaml -lm -ldl -lpthread
B = build

# in the order of the pipeline
GEN = base utf8 diag yaml schema spec_value spec_load spec spec_print model model_hc stages optim ir graph scales grad simplify \
	terms pairs slots search lock why product rewrite recompute fuse steps steps_attn steps_head plan update target mem lower lower_exp lower_loop lower_cuda lower_map lower_vec hoist stream spread emit emit_cuda tail texts manifest report diff generate \
	interp interp_heavy interp_head interp_plan interp_run show
RUNTIME = line load load_steps cache arena memory init pool gemm gemm_run compile cpu simt simt_compile simt_check \
	simt_fiber simt_warp dev_simt api cubin nvrtc resources compiled cuda_mem cuda_dev lt device launch shard data \
	bytes ngram st log train sample bench doctor verify verify_update
TEMPLATES = $(wildcard templates/*/*.c templates/*/*.cu templates/*/*.cuh templates/*/*.h)

GENOBJ = $(GEN:%=$(B)/gen/%.o) $(B)/templates.o
RUNOBJ = $(RUNTIME:%=$(B)/runtime/%.o)
all: $(B)/hcgen

$(B)/hcgen: $(B)/gen/main.o $(GENOBJ) $(RUNOBJ)
	@echo "LD $@"
	@$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	@echo "CC $<"
	@$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

# at -O2 gcc leaves its loops over rows scalar, and products with an addend run at 0.4 of the speed (hcgen bench)
$(B)/runtime/gemm_run.o: CFLAGS += -O3
# at -O2 it keeps the sums of a tile in memory
$(B)/gen/interp_heavy.o: CFLAGS += -O3

-include $(wildcard $(B)/gen/*.d $(B)/runtime/*.d)

$(B)/templates.c: gen/embed.sh $(TEMPLATES)
	@mkdir -p $(@D)
	@sh gen/embed.sh $(sort $(TEMPLATES)) > $@.tmp && mv $@.tmp $@

# one string per template is longer than C compilers must accept
$(B)/templates.o: $(B)/templates.c gen/templates.h
	@$(CC) $(CFLAGS) -Wno-overlength-strings -Igen -c -o $@ $<

deps-run:
	@sh tools/deps.sh run
deps-test:
	@sh tools/deps.sh test

run: deps-run
	@$(MAKE) --no-print-directory -j2 all
	sh tools/run.sh

test: deps-test
	@$(MAKE) --no-print-directory -j2 all
	sh tests/run

# rewrite what tests compare with: goldens, generated tables
bless: all
	sh tests/run bless

# every spec through everything; SPECS="specs/a.yaml …" for some
specs: all
	/usr/bin/python3 tests/specs.py $(SPECS)

soak: all
	/usr/bin/python3 tests/soak.py $(or $(N),500)

bench: all
	/usr/bin/python3 tests/bench.py

docs: all
	sh tools/docs.sh

lint:
	cppcheck -q --enable=warning,portability --inline-suppr -Igen gen runtime
	shellcheck tools/*.sh gen/*.sh tests/run tests/standin/build.sh tests/gpu/run.sh .ci/run

wc:
	@wc -l gen/*.[ch] gen/*.def | sort -n | tail -40
	@wc -l runtime/*.[ch] | sort -n | tail -30

clean:
	rm -rf $(B)

.PHONY: all deps-run deps-test run test bless specs soak bench docs lint wc clean
