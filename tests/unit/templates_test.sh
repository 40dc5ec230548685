#!/bin/sh
# Fills the holes of the CPU templates, compiles each kernel as the runtime does, runs templates_test.c on them.
#
#   templates_test.sh           cases, one line each
#   templates_test.sh bench     speeds, one thread
#   CC=clang …                  another compiler
#   SAN=address,undefined …     with sanitizers
#   ARCH=haswell …            for another processor (AVX2: vectors of 8)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cpu=$here/../../templates/cpu
CC=${CC:-cc}
flags="-O3 -march=${ARCH:-native} -fno-math-errno -fno-trapping-math -fopenmp-simd -mprefer-vector-width=512 -std=gnu11"
flags="$flags -Wall -Wextra -Werror -Wno-psabi ${SAN:+-g -fsanitize=$SAN -fno-sanitize-recover=all}"
# the sanitizers' checks hide from gcc that the loops set what is read after them
case ${SAN:-} in ?*) flags="$flags -Wno-maybe-uninitialized" ;; esac

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# put TEMPLATE KERNEL HOLE=VALUE ...
put()
{
	template=$1 kernel=$2
	shift 2
	for hole; do
		printf 's/@%s@/%s/g\n' "${hole%%=*}" "${hole#*=}"
	done >"$tmp/sed"
	echo "s/@KERNEL@/$kernel/g" >>"$tmp/sed"
	{ cat "$cpu/prelude.c"; sed -f "$tmp/sed" "$cpu/$template.c"; } >"$tmp/$kernel.c"
	if grep '@[A-Z]*@' "$tmp/$kernel.c"; then
		echo "FAIL $kernel: holes left"
		exit 1
	fi
	echo "$kernel" >>"$tmp/kernels"
}

# row MACRO(...): a line of the table that templates_test.c includes
row()
{
	echo "$1" >>"$tmp/cases.def"
}

# attn DTQ DTO DTG H K D
attn()
{
	n=$1_$2_$3_H$4_K$5_D$6
	put attn_fwd "attn_fwd_$n" DTQ="$1" DTO="$2" H="$4" K="$5" D="$6"
	put attn_bwd "attn_bwd_$n" DTQ="$1" DTO="$2" DTG="$3" H="$4" K="$5" D="$6"
	row "ATTN($n, $1, $2, $3, $4, $5, $6)"
}

# ce DTG V VP CAP CAPV SHIFT TEMP
ce()
{
	n=$1_V$2_VP$3_cap$4
	put ce "ce_$n" DTG="$1" V="$2" VP="$3" CAP="$4" CAPV="$5" SHIFT="$6" TEMP="$7"
	put softcap "softcap_$n" VP="$3" CAP="$4" CAPV="$5" SHIFT="$6" TEMP="$7"
	row "CE($n, $1, $2, $3, $4, $5, $6, $7)"
}

# rows DT C
rows()
{
	put gather "gather_$1_C$2" DT="$1" C="$2"
	put scatter "scatter_$1_C$2" DT="$1" C="$2"
	put signs "signs_$1_C$2" DT="$1" DTX=f32 C="$2" N=7
	row "ROWS($1_C$2, $1, $2)"
}

: >"$tmp/cases.def"
if [ "${1:-}" = bench ]; then
	attn f32 f32 f32 6 6 64
	attn bf16 bf16 bf16 6 6 64
	attn bf16 bf16 bf16 6 6 128
	ce bf16 50257 50304 0 1.f 0.f 1.f
	ce bf16 50257 50304 1 15.f 0.f 1.f
	ce bf16 50257 50304 2 23.f 5.f 7.5f
else
	attn f32 f32 f32 2 2 8
	attn f32 f32 f32 3 1 16
	attn f32 f32 f32 4 2 24
	attn f32 f32 f32 4 2 64
	attn f32 f32 f32 2 1 128
	attn f32 f32 f32 2 1 256
	attn bf16 bf16 bf16 6 6 16
	attn bf16 bf16 bf16 4 2 64
	attn bf16 f32 f32 2 2 64
	attn bf16 bf16 f32 4 1 128
	ce f32 257 320 0 1.f 0.f 1.f
	ce f32 50 64 1 15.f 0.f 1.f
	ce bf16 2500 2560 2 23.f 5.f 7.5f
	ce bf16 257 257 1 30.f 0.f 1.f
	rows f32 8
	rows bf16 64
	rows f32 200
	rows bf16 768
fi
put adamw adamw_w1 WEIGHTS=1 HELD=0 TIED=0
put adamw adamw_w0 WEIGHTS=0 HELD=0 TIED=0
put sqsum sqsum
put clip clip
put finish finish
put loss_sum loss_sum
put gate gate_one DT=f32 H=1 N=5 C=16 WN=5 W0=0
put gate_bwd gate_bwd_one DT=f32 DTG=f32 H=1 N=5 C=16 WN=5 W0=0
put gate gate_six DT=bf16 H=6 N=12 C=64 WN=12 W0=0
put gate_bwd gate_bwd_six DT=bf16 DTG=bf16 H=6 N=12 C=64 WN=12 W0=0
put gate gate_part DT=bf16 H=3 N=6 C=64 WN=13 W0=5
put gate_bwd gate_bwd_part DT=bf16 DTG=bf16 H=3 N=6 C=64 WN=13 W0=5
put scaled scaled_f32 DT=f32 DTW=f32 S='s0[0]'
put scaled scaled_bf16 DT=bf16 DTW=f32 S='F32(BF16(s0[0])) * s1[0]'
put scaled_bwd scaled_bwd DTW=f32 S='s0[0] * s1[0]'

# two compilers at a time
cd "$tmp"
xargs -P 2 -I N sh -c "$CC $flags -c N.c -o N.o || exit 255" <kernels
$CC $flags -I. -I"$cpu" -c "$here/templates_test.c" -o templates_test.o
$CC ${SAN:+-fsanitize=$SAN} ./*.o -lm -o templates_test
./templates_test "$@"

# the loops over elements vectorise (gcc says so; the attention kernels are written in vectors)
if [ -z "${SAN:-}${1:-}" ] && $CC --version | grep -q 'Free Software'; then
	for k in $(grep -v -e attn -e clip -e loss_sum -e gather_f32 -e signs_f32_C8 -e gate -e softcap_.*cap0 kernels); do
		if $CC $flags -fopt-info-vec -c "$k.c" -o /dev/null 2>&1 | grep -q 'loop vectorized using'; then
			echo "ok vectorised $k"
		else
			echo "FAIL vectorised $k"
			exit 1
		fi
	done
fi
