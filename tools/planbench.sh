#!/bin/sh
# docs/bench/plan.md: what plans move, for the shapes that traffic is compared on.
# No GPU: bytes are counted by the planner (and by simt, in the tests), times are modelled.
set -eu
cd "$(dirname "$0")/.."

# shape NAME SPEC [--set …]: a row for each way to plan
shape() {
	name=$1 spec=$2
	shift 2
	for how in search=naive search=auto $also sources=inline sources=precompute; do
		build/hcgen plan "$spec" "$@" --set plan.$how | awk -v name="$name" -v how="$how" '
			/^lane glue/ { f = $4; b = $6; total = $(NF - 1) }
			/^modelled/  { ms = $2; sub(/.*\(glue /, ""); sub(/,.*/, ""); glue = $0 }
			END { printf "| %s | %s | %s | %s | %s | %s | %s |\n", name, how, f, b, total, glue, ms }'
	done
}

two=specs/two-lane.yaml none='{x0: none, e: none}'
echo "| shape | plan. | forward U | backward U | lane glue, bytes per token | row kernels, ms | micro-step, ms |"
echo '|---|---|---|---|---|---|---|'
also=scales=stream
shape 'one lane' specs/single.yaml
shape 'one lane, post learned' specs/single.yaml --set 'hc.post={learned: true}'
shape 'modded-nanogpt baseline' specs/baseline.yaml
shape 'experiment 44' specs/exp44.yaml
shape 'PR 230, lanes in layers 7 to 10' specs/parallel-residuals.yaml
shape 'PR 233, lanes in layers 7 to 10' specs/flatten-forward.yaml
shape 'PR 241, one value read thrice' specs/simplify-hc.yaml
also=
shape 'two lanes' $two
shape 'two lanes, sources at every sublayer' $two --set hc.sources.x0.sublayers=all --set hc.sources.e.sublayers=all
shape 'four lanes, no sources' $two --set hc.lanes=4 --set "hc.sources=$none"
shape 'four lanes' $two --set hc.lanes=4
shape 'two lanes, all learned, no sources' $two --set hc.res.learned=true --set hc.pre.learned=true --set "hc.sources=$none"
shape 'two lanes, all learned' $two --set hc.res.learned=true --set hc.pre.learned=true
