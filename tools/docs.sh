#!/bin/sh
# Make anew what is generated in docs/: the key table of spec.md from the schema, the
# kernels that emitted.md explains from specs/; and the table of experiments in specs/README.md.
# They stand between markers.
set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# between FILE MARKER TEXT: put TEXT between <!-- MARKER --> and <!-- /MARKER -->
between() {
	awk -v m="<!-- $2 -->" '$0 == m { print; exit } { print }' "$1" >"$tmp/new"
	cat "$3" >>"$tmp/new"
	awk -v m="<!-- /$2 -->" '$0 == m { on = 1 } on { print }' "$1" >>"$tmp/new"
	cat "$tmp/new" >"$1"
}

build/hcgen check --schema >"$tmp/keys"
between docs/spec.md keys "$tmp/keys"

build/hcgen emit specs/tiny.yaml -o "$tmp/tiny" --quiet --device cpu
{
	echo
	awk '/^\/\/ from templates/ { skip = 1 } !skip { print "    " $0 } /^\/\/ end/ { skip = 0; getline }' \
		"$tmp/tiny/kernels/lanes_attn_fwd_at2__n2_C256_bf16.c" | sed 's/ *$//'
	echo
} >"$tmp/kernel"
between docs/emitted.md kernel "$tmp/kernel"

{
	echo
	build/hcgen show specs/two-lane.yaml lanes_attn_fwd_at5__n2_C768_bf16 | grep -v '^// compiled' |
		sed -e 's/^/    /' -e 's/ *$//'
	echo
} >"$tmp/cuda"
between docs/emitted.md cuda "$tmp/cuda"

/usr/bin/python3 tools/specs_table.py --write
