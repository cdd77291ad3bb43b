#!/bin/sh
# What the tests need beyond Python packages: a browser, spoken clips with their transcripts, a compiler for torch.compile.
set -eu

clips=/usr/share/pocketsphinx/test/data/librivox/fileids
if command -v chromium >/dev/null && command -v g++ >/dev/null && [ -e "$clips" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "The tests need Chromium on the PATH as 'chromium', g++ and LibriVox clips in $(dirname "$clips"): install them by hand." >&2
    exit 1
fi
sudo=$([ "$(id -u)" -eq 0 ] || echo sudo)
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium g++ libc6-dev pocketsphinx-testdata
