#!/bin/sh
# deps.sh run|test: install the Debian packages that the command needs, if they are missing.
# As root or with sudo; otherwise one line that names them.
set -eu

run="gcc libc6-dev make libyaml-dev libdnnl-dev"
test="$run g++ binutils libboost-context-dev clang python3 python3-torch python3-numpy python3-yaml libopenblas0-pthread"
case ${1:-run} in
run) want=$run ;;
test) want=$test ;;
*) echo "usage: deps.sh run|test" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null 2>&1; then
	for lib in yaml.h oneapi/dnnl/dnnl.h; do
		[ -e "/usr/include/$lib" ] || {
			echo "this is no Debian; install what provides: $want" >&2
			exit 2
		}
	done
	exit 0
fi
missing=
for p in $want; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
	as=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
	as=sudo
else
	echo "missing packages; as root: apt-get install -y$missing" >&2
	exit 2
fi
echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
{
	$as apt-get update -qq
	$as apt-get install -y -qq --no-install-recommends $missing
} >/dev/null 2>&1 || {
	echo "apt-get could not install:$missing" >&2
	exit 2
}
