#!/bin/sh
# Put the key table that the schema prints between the markers of docs/spec.md.
set -eu
tmp=$(mktemp)
trap 'rm -f "$tmp"' EXIT
awk '/<!-- keys -->/ { print; exit } { print }' docs/spec.md > "$tmp"
build/hcgen check --schema >> "$tmp"
awk '/<!-- \/keys -->/ { on = 1 } on { print }' docs/spec.md >> "$tmp"
cat "$tmp" > docs/spec.md
