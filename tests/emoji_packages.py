"""The two emoji packages in their true layout, with a few pictures drawn here."""

import json
import pathlib

import cv2
import numpy as np

TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")

# name: (character, group, BGR, shape); each shape fills a box that is wide, high or square
EMOJI = {
    "fox": ("🦊", "Animals & Nature", (40, 120, 240), "disk"),
    "owl": ("🦉", "Animals & Nature", (60, 90, 120), "high"),
    "black cat": ("🐈‍⬛", "Animals & Nature", (40, 30, 30), "disk"),
    "cat": ("🐈", "Animals & Nature", (90, 190, 250), "wide"),
    "pizza": ("🍕", "Food & Drink", (60, 200, 250), "triangle"),
    "grapes": ("🍇", "Food & Drink", (180, 60, 140), "triangle"),
    "nine o’clock": ("🕘", "Travel & Places", (150, 150, 140), "disk"),  # noqa: RUF001
    "umbrella": ("☂️", "Travel & Places", (200, 80, 120), "wide"),
    "cook": ("🧑‍🍳", "People & Body", (80, 200, 250), "high"),
    "woman cook": ("👩‍🍳", "People & Body", (90, 190, 240), "high"),
    "index pointing up": ("☝️", "People & Body", (70, 190, 250), "high"),
    "axe": ("🪓", "Objects", (120, 120, 120), "triangle"),
    "soccer ball": ("⚽", "Activities", (120, 120, 130), "disk"),
    "kite": ("🪁", "Activities", (50, 40, 220), "triangle"),
    "flag Spain": ("🇪🇸", "Flags", (0, 0, 200), "wide"),
    "foggy": ("🌁", "Travel & Places", (200, 200, 200), "wide"),
}
KEPT = [name for name in EMOJI if name not in ("flag Spain", "foggy")]
TONED = ("cook", "woman cook", "index pointing up")


def write_packages(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes both packages and returns their folders as `emoji` and `names`."""
    emoji, names = folder / "emoji", folder / "names"
    (emoji / "assets").mkdir(parents=True)
    names.mkdir()
    table = {}
    for number, (name, (character, group, color, shape)) in enumerate(EMOJI.items()):
        table[character] = {
            "name": name,
            "slug": name.replace(" ", "_"),
            "group": group,
            "emoji_version": "1.0",
            "unicode_version": "1.0",
            "skin_tone_support": name in TONED,
        }
        codes = [f"{ord(c):04x}" for c in character]
        suffix = ".png" if number % 2 else ".webp"
        write_picture(emoji / "assets" / f"{'-'.join(codes)}{suffix}", color, shape)
        for place, tone in enumerate(TONES if name in TONED else ()):
            skin = tuple(c // (place + 2) for c in color)
            toned = "-".join([codes[0], tone, *(c for c in codes[1:] if c != "fe0f")])
            write_picture(emoji / "assets" / f"{toned}{suffix}", skin, shape)
    write_picture(emoji / "assets" / "1f3f4-e0067.webp", (9, 9, 9), "wide")  # without a name
    (names / "data-by-emoji.json").write_text(json.dumps(table, ensure_ascii=False, indent=2))
    return {"emoji": emoji, "names": names}


def write_picture(path: pathlib.Path, color: tuple[int, ...], shape: str) -> None:
    """A shape of one colour, off the middle of 64 x 64 pixels; what is not seen is green."""
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[..., 1] = 255
    alpha = np.zeros((64, 64), np.uint8)
    if shape == "disk":
        cv2.circle(alpha, (34, 30), 24, 255, -1)
    elif shape == "triangle":
        cv2.fillPoly(alpha, [np.array([(10, 8), (58, 20), (26, 56)])], 255)
    else:
        top, left, height, width = (4, 20, 50, 25) if shape == "high" else (20, 4, 25, 50)
        alpha[top : top + height, left : left + width] = 255
    picture[alpha > 0, :3] = color
    picture[..., 3] = alpha
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if path.suffix == ".webp" else []
    cv2.imwrite(str(path), picture, lossless)
