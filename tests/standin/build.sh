#!/bin/sh
# tests/standin/build.sh [DIR]: libcuda.so.1, libnvrtc.so.13 and libcublasLt.so.13 that need no GPU, into
# DIR/standin; DIR is build if not given.  What is not older than its sources stays.  Where the vendor's
# headers are, they declare the functions; else decl_types.h does, as with STANDIN_HEADERS=own.
set -eu
cd "$(dirname "$0")/../.."
build=${1:-build}
out=$build/standin
here=tests/standin
cuda=${CUDA_HOME:-/usr/local/cuda}
flags="-std=c11 -O2 -g -Wall -Wextra -Wshadow -Wno-unused-parameter -fPIC -fvisibility=hidden -ffunction-sections"
if [ "${STANDIN_HEADERS:-}" != own ] && [ -f "$cuda/include/cublasLt.h" ] && [ -f "$cuda/include/nvrtc.h" ]; then
	flags="$flags -DSTANDIN_REAL_HEADERS -isystem $cuda/include"
fi
mkdir -p "$out/obj"

newer() {       # newer FILE SOURCE…: FILE is there and no source is newer
	file=$1
	shift
	[ -f "$file" ] && [ -z "$(find "$@" -newer "$file" -print -quit)" ]
}

object() {      # object SOURCE [FLAG…]
	source=$1
	name=$(echo "$source" | tr / _)
	shift
	# shellcheck disable=SC2086
	newer "$out/obj/$name.o" $here runtime/*.h runtime/api.def gen/*.h "$source" ||
		${CC:-gcc} $flags "$@" -c -o "$out/obj/$name.o" "$source"
	objects="$objects $out/obj/$name.o"
}

library() {     # library SONAME [FLAG…]: of $objects
	soname=$1
	shift
	# shellcheck disable=SC2086
	newer "$out/$soname" $objects ||
		${CC:-gcc} -shared -Wl,-soname,"$soname" -Wl,-rpath,"\$ORIGIN" -Wl,--no-undefined -Wl,-Bsymbolic -Wl,--gc-sections \
			-o "$out/$soname" $objects "$@" -lpthread -ldl -lm
}

shim=$out/obj/shim.c
newer "$shim" gen/embed.sh templates/simt || sh gen/embed.sh templates/simt/*.h >"$shim"

objects=
for f in inject memory engine elf module libcuda calls proc; do object $here/$f.c; done
for f in runtime/simt*.c runtime/cache.c gen/base.c; do object "$f"; done
object "$shim" -Igen -Wno-overlength-strings
library libcuda.so.1

objects=
for f in inject elf libnvrtc; do object $here/$f.c; done
object "$shim" -Igen -Wno-overlength-strings
library libnvrtc.so.13

objects=
for f in inject lt_problem libcublaslt; do object $here/$f.c; done
object $here/lt_matmul.c -O3 -march=native
library libcublasLt.so.13
