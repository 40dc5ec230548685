#!/bin/sh
# tests/gpu/run.sh DIR: everything that only a GPU can tell, in nine minutes at most.
#
#   DIR/gpu.md          a page for docs/bench/      DIR/gpu.json    every number, command, exit code, time
#   DIR/intrinsics/     goldens for tests/golden/intrinsics/, which twins_test replays
#   DIR/log/            what each command printed   DIR/gpu.tar.gz  all of these
#
# Needs python3 and build/hcgen (or $HCGEN; where neither runs, make is tried), no network.  The page is written
# anew behind every step, so it is there whenever and however the run ends.  Exit code 0: all went well, 1: a step
# failed, 2: there is no GPU and nothing was measured, 143: told to end.
#
# A binary that needs no libyaml on the machine it is carried to:
#
#   make B=build/carry LDLIBS='-l:libyaml.a -lm -ldl -lpthread' build/carry/hcgen
#
#   HCGEN             the binary                    HCGEN_COMMIT    what to call it, where git cannot say
#   HCGEN_CUDA_PATH   where NVIDIA's libraries are, as in docs/runtime.md
#   HCGEN_GPU_QUICK   small sizes and fewer steps: to try this script, not the GPU
#   HCGEN_GPU_STEPS   names of steps with blanks between them: only these
[ $# -eq 1 ] || {
	echo "usage: tests/gpu/run.sh DIR" >&2
	exit 2
}
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 LC_ALL=C.UTF-8
exec "$(command -v python3 || echo /usr/bin/python3)" "$(dirname "$0")/run.py" "$1"
