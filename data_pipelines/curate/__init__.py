"""From recorded video to pairs of frames with captions and mask trajectories (UniReal section 3.2).

clips.py         what a clip is, and video files
formats.py       clips that come with masks: mask_folders.py and run_lengths.py (DAVIS,
                 YouTube-VIS), MOVi, MiniWorld
motion.py        how much moves between frames: which pairs to take, static or dynamic
describe.py      captions, and boxes of the things that they name: of sidecar files and given masks
track.py         what mask trajectories are, and those that the data have
track_flow.py    boxes and first masks to mask trajectories, by optical flow and GrabCut
track_background.py  mask trajectories of what moves before a still camera
pairs.py         the record of a pair
job.py           all of it as an Apache Beam pipeline

checkpoints.py, describe_models.py, track_sam2.py, depth_model.py
                 pretrained models: Kosmos-2, Florence-2, Grounding DINO, SAM 2, Depth Anything
benchmark.py     how well trackers do on drawn clips (exact_clips.py), whose masks are exact
"""
