"""Raw training data as they lie on disks and in buckets, read into the fields of a task.

Reading order: base (what a source is), tables (rows of named columns: folders, tars, parquet),
subjects (several pictures of one thing), scenes (posed views), conditions (fields made on the fly),
pairs (samples built from curated video), make (from a config), sheet (samples to look at).
"""
