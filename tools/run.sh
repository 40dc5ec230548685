#!/bin/sh
# make run: train the tiny two-lane model, let it write, say where the kernels are.
set -eu
build/hcgen train specs/tiny.yaml
echo
echo "a sample, continuing \"#ifndef _\":"
build/hcgen sample out/tiny/run --prompt '#ifndef _' -n 400 --temperature 0.7
echo
echo "the kernels that trained it: out/tiny/kernels, the plan: out/tiny/plan.txt"
