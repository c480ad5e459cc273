#!/usr/bin/env bash
# Packs what a GPU machine without a network lacks, and unpacks it there. on_gpu.md has all calls.
#
#   experiments/benchmarks/carry.sh collect PYTHON DATA   fills build/carry/; needs a network
#   experiments/benchmarks/carry.sh unpack FOLDER         checks and extracts the parts in FOLDER
#
# `collect` uses PYTHON, of an environment with the package, and fer2013.csv or fer2013.csv.gz of DATA. It
# writes the packages and FER2013 as records to an archive, in parts, with their SHA-256. `unpack` extracts
# FOLDER/site for PYTHONPATH, FOLDER/data for --data and FOLDER/prepared for --prepared.
set -euo pipefail

# 64 MiB may travel at once, together with the repository.
part_bytes=${PART_BYTES:-50000000}
# The GPU machine has Python 3.12, jax, flax, optax, orbax, chex, scikit-learn, pytest, and what they need.
# TensorFlow works without keras.
packages='array_record astunparse dm-tree docstring_parser gast google-pasta googleapis-common-protos
  immutabledict importlib_resources ml_collections promise protobuf pytorch-metric-learning simple-parsing
  tensorboardX tensorflow-cpu tensorflow-datasets tensorflow-metadata termcolor toml'

# Packs the folder $1 into parts in the folder $2.
pack() {
  tar -cJf - -C "$1" . | split -b "$part_bytes" -d -a 1 - "$2/part-"
  (cd "$2" && sha256sum part-* > SHA256SUMS && ls -l)
}

unpack() {
  (cd "$1" && sha256sum --check --quiet SHA256SUMS && cat part-* > all.tar.xz)
  # The machine may lack xz, which Python has.
  python3 -m tarfile -e "$1/all.tar.xz" "$1"
  rm "$1/all.tar.xz"
}

collect() {
  work=$(mktemp -d)
  site=$work/site
  # shellcheck disable=SC2086
  "$1" -m pip install --quiet --no-deps --no-compile --only-binary=:all: --no-binary=promise \
    --python-version=3.12 --implementation=cp --platform=manylinux_2_28_x86_64 \
    --platform=manylinux_2_27_x86_64 --platform=manylinux_2_17_x86_64 --platform=manylinux2014_x86_64 \
    --platform=any --target="$site" $packages
  # Only compilers read these files. Names of internal functions are a quarter of the largest library.
  rm -rf "$site"/tensorflow/include "$site"/tensorflow/xla_aot_runtime_src "$site"/bin
  strip --strip-unneeded "$site"/tensorflow/libtensorflow_*.so*
  # The package recognises prepared data by name, size and time of its source, which it does not read again.
  # So the source can become zeros. An archive keeps whole seconds.
  mkdir "$work/data"
  cp "$2"/fer2013.csv* "$work/data"
  source=$(ls "$work"/data/*) second=$(stat -c %Y "$2"/fer2013.csv*) size=$(stat -c %s "$2"/fer2013.csv*)
  touch -d "@$second" "$source"
  "$1" -m mtdml_jax prepare --config=configs/fer2013.py --config.data.dir="$work/data" \
    --config.data.prepared_dir="$work/prepared"
  truncate -s 0 "$source" && truncate -s "$size" "$source" && touch -d "@$second" "$source"
  rm -rf build/carry && mkdir -p build/carry
  pack "$work" build/carry
  rm -rf "$work"
}

"$@"
