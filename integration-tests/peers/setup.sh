#!/bin/sh
# Installs what is asked for (default: gen flink) under PEERS_HOME and makes the data.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
H="${PEERS_HOME:-$here/../../target/peers}"
mkdir -p "$H/bin" "$H/dl" "$H/data"
cd "$H"
for w in ${*:-gen flink}; do
  case "$w" in
    gen)
      rustc -O "$here/gen/gen.rs" -o bin/gen
      [ -f data/bids-5000000/expected.json ] || bin/gen data/bids-5000000 5000000 ;;
    flink)
      python3 -m venv venv
      venv/bin/pip download -q --no-deps -d dl apache-flink-libraries==2.3.0 apache-flink==2.3.0
      mkdir -p flink && for f in dl/apache_flink*.whl; do python3 -m zipfile -e "$f" flink; done ;;
    *) echo "no such peer: $w" >&2; exit 2 ;;
  esac
done
