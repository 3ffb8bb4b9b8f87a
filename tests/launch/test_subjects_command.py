"""The command that makes subjects of emoji."""

import emoji_packages
from PIL import Image

from data_pipelines.subjects.records import open_subjects


def test_subjects_and_their_sheet(tmp_path, run_command):
    packages = emoji_packages.write_packages(tmp_path)
    out, sheet = tmp_path / "subjects", tmp_path / "sheet.png"
    args = [f"--emoji={packages['emoji']}", f"--names={packages['names']}", f"--out={out}"]
    args += ["--size=24", "--seed=7", "--share=0.2", "--shards=1"]
    done = run_command("subjects", *args, f"--sheet={sheet}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        f"{out}: 8 train, 3 validation, 3 test subjects",
        f"items: {sheet}",
    ]
    assert "14/14" in done.stderr  # the progress bar
    assert len(open_subjects(out, "train").records) == 8
    with Image.open(sheet) as picture:
        assert picture.width > 700 and len(picture.getcolors(2**20)) > 100
    args[3] = "--size=32"
    wrong = run_command("subjects", *args)
    assert wrong.returncode == 1
    assert wrong.stderr.strip().endswith(
        f"error: {out} was made with other settings (size was 24, now 32); remove it, or choose "
        "another --out"
    )
