#!/bin/sh
# Fetches a checkpoint from an object store into a directory, verifies it, and marks it complete.
# fetch-weights.sh REMOTE:PATH DIRECTORY MANIFEST|"" TRANSFERS whole|small
# After an interruption it continues with the missing files. `small`: all files except the weights.
set -eu
source=$1 target=$2 manifest=$3 transfers=$4 part=$5
marker=$target/.outrider-complete

complete() { [ "$(cat "$marker" 2>/dev/null)" = "$source" ]; }

fetch() {
  if [ "$part" = small ]; then
    rclone copy "$source" "$target" --checksum --transfers "$transfers" --retries 10 --stats-one-line \
      --exclude '*.safetensors' --exclude '*.bin' --exclude '*.pt' --exclude '*.gguf'
  else
    rclone copy "$source" "$target" --checksum --transfers "$transfers" --retries 10 --stats-one-line --stats 30s -v
  fi
}

# The manifest's lines for the files of this part.
wanted_sums() {
  if [ "$part" = small ]; then
    grep -vE '\.(safetensors|bin|pt|gguf)$' "$target/$manifest" || true
  else
    cat "$target/$manifest"
  fi
}

check() {
  if [ -n "$manifest" ]; then
    cd "$target"
    wanted_sums | tr '\n' '\0' | xargs -0 -r -n 1 -P "$transfers" sh -c 'printf "%s\n" "$1" | sha256sum -c -' check
  elif [ "$part" = whole ]; then
    rclone check "$source" "$target" --one-way
  fi
}

mkdir -p "$target"
complete && exit 0
exec 9>"$target/.outrider-lock"
flock 9 # only one pod of a node fetches
complete && exit 0
rm -f "$marker"
fetch
check
printf %s "$source" >"$marker.new"
mv "$marker.new" "$marker"
echo "complete: $source"
