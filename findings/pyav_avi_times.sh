#!/usr/bin/env bash
# Frames of H.264 with B-frames in an AVI come in order, but PyAV gives them times that run backwards.
#
# Versions: PyAV 18.1.0 with Python 3.11; the same with 19.0.2 and Python 3.12.
# Expectation: times rise from frame to frame, as for the same frames in an MP4.
# Seen: 0.04, 0.16, 0.12, 0.20, 0.08, ... for 25 frames a second. AVI stores no times of display, so each
#   packet has only its place in the order of decoding, which becomes the `pts` of its frame. The `dts` of
#   a frame, which is that of the packet that completed it, rises by one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet av==18.1.0 numpy
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import av
import numpy as np

found = {}
for suffix in ('mp4', 'avi'):
    options = {'x264-params': 'bframes=3:b-adapt=0:scenecut=0'}
    path = f'{sys.argv[1]}/video.{suffix}'
    with av.open(path, 'w') as container:
        stream = container.add_stream('libx264', rate=25, options=options)
        stream.height = stream.width = 32
        for number in range(20):
            frame = np.full((32, 32, 3), 12 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    greys = [int(frame.to_ndarray(format='gray')[9, 9]) for frame in frames]
    if greys != sorted(greys):
        sys.exit('this has changed: frames do not come in order')
    found[suffix] = [frame.time for frame in frames]
    print(suffix, ', '.join(f'{time:.2f}' for time in found[suffix]))
if found['mp4'] != sorted(found['mp4']) or found['avi'] == sorted(found['avi']):
    sys.exit('this has changed')
PYTHON
