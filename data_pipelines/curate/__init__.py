"""From recorded video to pairs of frames with captions and mask trajectories (UniReal section 3.2).

clips.py         what a clip is, and the formats that clips come in
mask_folders.py  DAVIS and YouTube-VIS, whose clips have masks
run_lengths.py   masks as YouTube-VIS writes them
motion.py        how much moves between frames: which pairs to take, static or dynamic
describe.py      captions, and boxes of the things that they name: of sidecar files and given masks
track.py         boxes and first masks to mask trajectories
pairs.py         the record of a pair
job.py           all of it as an Apache Beam pipeline

checkpoints.py, describe_models.py, track_sam2.py
                 pretrained models for it: Kosmos-2, Florence-2, Grounding DINO, SAM 2
"""
