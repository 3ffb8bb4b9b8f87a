"""Raw training data as they lie on disks and in buckets, read into the fields of a task.

Reading order: base (what a source is), tables (rows of named columns: folders, tars, parquet,
prepared TensorFlow Datasets), structures (fields of known ones among these: referring, movi; depths
draws their depth), davis (masks of named things), subjects (several pictures of one thing), scenes
(posed views), conditions and tags (added to another source), pairs (samples built from curated
video), make (from a config), sheet (samples to look at).
"""
