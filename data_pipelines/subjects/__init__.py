"""Subjects: pictures of named things with exact masks, set into scenes of one to three of them.

Reading order: package (what the emoji packages hold), names (what things are called), records (how
they are stored and split), scenes (how they are drawn together), captions (what is said of a scene)
and items (what tasks get).
"""
