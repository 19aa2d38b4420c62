#!/bin/sh
# infra/fetch.sh spark: what runs pipelines on Spark (or flink: on Flink), into ~/.cache/soundlake/spark: the job server
# of Beam, and the cluster's own jars for the tests. What is there and of these versions stays. PYTHON: one that has pip.
set -eu
name=$1
here=$(cd "$(dirname "$0")/$name" && pwd)
root=${XDG_CACHE_HOME:-$HOME/.cache}/soundlake
digest=$(cat "$0" "$here/pom.xml" "$here/requirements.txt" | sha256sum | cut -c 1-16)

need() {
  command -v "$1" >/dev/null || {
    echo "Beam's job server for $name needs $1; on Debian: apt install openjdk-17-jre-headless maven" >&2
    exit 2
  }
}

need java
if [ "$(cat "$root/$name/digest" 2>/dev/null)" != "$digest" ]; then
  need mvn
  began=$(date +%s)
  mkdir -p "$root"
  # Made aside, and moved to its place when it is whole. What a killed one has left goes.
  find "$root" -maxdepth 1 -name ".$name-*" -mmin +120 -exec rm -rf {} +
  part=$(mktemp -d "$root/.$name-XXXXXX")
  trap 'kill ${pip:-} 2>/dev/null || true; rm -rf "$part"' EXIT
  trap 'exit 130' INT TERM
  "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --no-build-isolation \
    --require-hashes --target "$part/cluster" -r "$here/requirements.txt" >"$part/pip.log" 2>&1 &
  pip=$!

  jars() {
    mvn -B -ntp -f "$here/pom.xml" -P "$@" dependency:copy-dependencies -DincludeScope=runtime \
      -DoutputDirectory="$part/job-server" >"$part/mvn.log" 2>&1
  }
  version() { sed -n "s:.*<$1>\(.*\)</$1>.*:\1:p" "$here/pom.xml"; }
  mkdir "$part/job-server"
  if jars shaded -DexcludeTransitive=true; then
    told="the job server of Beam $(version beam.version)"
  elif jars modules; then
    told="Beam $(version beam.modules.version)'s modules: the registry has no job server of Beam $(version beam.version)"
  else
    tail -n 20 "$part/mvn.log" >&2
    echo "infra/fetch.sh: Maven could not fetch the job server for $name" >&2
    exit 1
  fi
  wait $pip || {
    tail -n 20 "$part/pip.log" >&2
    echo "infra/fetch.sh: pip could not install $(grep -v '^#' "$here/requirements.txt" | cut -d ' ' -f 1)" >&2
    exit 1
  }
  # The modules are without Spark.
  case $told in *modules*) [ ! -d "$part/cluster/pyspark" ] || ln -s ../cluster/pyspark/jars "$part/job-server/spark" ;; esac
  echo "$told" >"$part/told"
  echo "$digest" >"$part/digest"
  rm -f "$part"/*.log
  rm -rf "$root/$name"
  mv "$part" "$root/$name"
  echo "$name: fetched in $(($(date +%s) - began)) s into $root/$name"
fi
echo "$name: $(cat "$root/$name/told")"
