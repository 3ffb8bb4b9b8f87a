"""MiniWorld: small 3-D scenes with exact maps, edits, clips and language; no download needed.

Reading order: scene (what is drawn), geometry and render (how), language, edits and video (what
is said and changed), records, manifest and generate (how it is stored).
"""
