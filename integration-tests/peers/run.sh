#!/bin/sh
# run.sh flink QUERY...   one command per measurement; see README.md
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export PEERS_HOME="${PEERS_HOME:-$here/../../target/peers}"
peer=$1; shift
case "$peer" in
  gen)     exec "$PEERS_HOME/bin/gen" "$@" ;;
  flink)   case "${1:-wc}" in cold|latency) ;; *) set -- run "$@" ;; esac; exec python3 "$here/flink.py" "$@" ;;
  *) echo "no such peer: $peer" >&2; exit 2 ;;
esac
