"""Curation of videos: what is read, chosen and left out, and that jobs can be stopped."""

import collections
import dataclasses
import fractions
import json
import pathlib

import numpy as np
import pytest

from data_pipelines import shards
from data_pipelines.curate import pairs
from data_pipelines.curate.clips import ClipError, LazyFrames, ReadSettings, Shot, VideoClips
from data_pipelines.curate.describe import Description
from data_pipelines.curate.motion import PairSettings, choose_pairs, context_tags, grey, measure
from data_pipelines.curate.pairs import NAME, Pair, decode_pair, encode_pair
from data_pipelines.curate.track import Tracks
from data_pipelines.sources.base import SourceError
from unidiff_jax.config import ConfigError

av = pytest.importorskip("av", reason="needs the extra curate")
pytest.importorskip("apache_beam", reason="needs the extra curate")
from array_record.python.array_record_data_source import ArrayRecordDataSource  # noqa: E402

from data_pipelines.curate import job  # noqa: E402


def textured(seed, height=96, width=128):
    """A picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(40, 215, (height // 16, width // 16, 3)), np.ones((16, 16, 1)))
    fine = np.kron(rng.integers(-30, 30, (height // 4, width // 4, 3)), np.ones((4, 4, 1)))
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)


def moving_square(num_frames, seed=0, step=2):
    """A square that walks over a still background."""
    frames = np.repeat(textured(seed)[None], num_frames, 0)
    for t in range(num_frames):
        left = 4 + step * t % 96
        frames[t, 30:60, left : left + 24] = textured(seed + 1000)[:30, :24]
    return frames


def write_video(path, frames, *, fps=8, times=None, codec="mpeg4"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 8_000_000
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for t, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base = fractions.Fraction(1, 1000)
            frame.pts = round(1000 * (t / fps if times is None else times[t]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), format="s16", layout="mono"
        )
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


@dataclasses.dataclass(frozen=True)
class Captions:
    """Says what the sidecar says."""

    def describe(self, shot):
        if "caption" not in shot.sidecar:
            raise ClipError("no caption", "nothing is written beside the clip")
        return Description(shot.sidecar["caption"])


@dataclasses.dataclass(frozen=True)
class LeftHalf:
    """One thing, the left half of every frame; and one of a single pixel."""

    def track(self, shot, entities):
        masks = np.zeros(shot.frames.shape[:3], np.uint8)
        masks[:, :, : masks.shape[2] // 2] = 1
        masks[:, 0, -1] = 2
        return Tracks(masks, {1: "the left", 2: "a pixel"})


def curation(folder, **changes):
    return job.Curation(
        source=VideoClips(folder, settings=ReadSettings()), describer=Captions(), **changes
    )


def run(folder, out, *, num_shards=3, settings=None, **changes):
    return job.run_job(
        curation(folder, **changes), out, settings=settings or {}, num_shards=num_shards
    )


def read_all(folder, num_shards=3):
    found = []
    for name in shards.shard_names(NAME, num_shards):
        if (folder / name).exists():
            source = ArrayRecordDataSource([str(folder / name)])
            found += [decode_pair(source[i]) for i in range(len(source))]
    return found


@pytest.fixture
def clips(tmp_path):
    """Three good clips with captions."""
    folder = tmp_path / "clips"
    for seed in range(3):
        write_video(folder / f"{seed}.mp4", moving_square(24, seed))
        (folder / f"{seed}.txt").write_text(f"le carré {seed} avance, 四角", encoding="utf-8")
    return folder


# ----------------------------------------------------------------------------------------- reading


def test_frames_are_kept_by_time_not_by_number(tmp_path):
    times = np.cumsum([0, *([0.02] * 20), *([0.4] * 6)])  # 50 a second, then 2.5 a second
    write_video(tmp_path / "a.mkv", moving_square(27), fps=50, times=times)
    (shot,) = VideoClips(tmp_path, settings=ReadSettings(fps=8)).shots("a.mkv")
    gaps = np.diff(shot.times)
    assert (gaps > 0).all()
    fast = shot.times < 0.39
    assert 3 <= fast.sum() <= 4  # .4 s at 8 a second, of 20 frames
    np.testing.assert_allclose(gaps[-5:], 0.4, atol=0.002)  # every slow frame is kept


def test_cuts_divide_a_clip(tmp_path):
    frames = np.concatenate([moving_square(12, 0), moving_square(12, 50)])
    write_video(tmp_path / "a.mp4", frames)
    first, second = VideoClips(tmp_path, settings=ReadSettings()).shots("a.mp4")
    assert len(first.times) == len(second.times) == 12
    assert second.times[0] == pytest.approx(12 / 8, abs=0.01)
    for shot, truth in ((first, frames[0]), (second, frames[12])):
        assert np.abs(shot.frames[0].astype(int) - truth).mean() < 8


def test_long_takes_are_divided_and_large_frames_scaled(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(20))
    settings = ReadSettings(size=64, max_frames=8)
    found = list(VideoClips(tmp_path, settings=settings).shots("a.mp4"))
    assert [len(shot.times) for shot in found] == [8, 8, 4]
    assert found[0].frames.shape == (8, 64, 85, 3)
    whole = np.asarray(found[0].frames)
    assert whole.dtype == np.uint8 and whole.shape == found[0].frames.shape


def test_small_clips_stay_as_they_are(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(4))
    (shot,) = VideoClips(tmp_path, settings=ReadSettings(size=256)).shots("a.mp4")
    assert shot.frames.shape == (4, 96, 128, 3)


def test_lazy_frames_are_made_once():
    made = []
    frames = LazyFrames(
        [lambda i=i: made.append(i) or np.full((2, 2, 3), i, np.uint8) for i in range(4)]
    )
    assert frames[2].max() == 2 and frames[-1].max() == 3
    np.testing.assert_array_equal(np.asarray(frames)[:, 0, 0, 0], range(4))
    assert sorted(made) == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        frames[4]


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"no film at all" * 50), "corrupt"),
        (write_sound, "no video"),
        (lambda path: write_video(path, moving_square(4)[:, :32, :32]), "too small"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, write, reason):
    path = tmp_path / "bad.mkv"
    write(path)
    with pytest.raises(ClipError, match=r"bad\.mkv") as error:
        list(VideoClips(tmp_path, settings=ReadSettings()).shots("bad.mkv"))
    assert error.value.reason == reason


def test_a_folder_without_clips(tmp_path):
    with pytest.raises(SourceError, match="has no video files"):
        VideoClips(tmp_path, settings=ReadSettings()).names()


# ------------------------------------------------------------------------------------------ motion


def shot_of(frames, fps=8):
    return Shot(frames, np.arange(len(frames)) / fps)


def test_flow_is_counted_in_diagonals():
    small = textured(3, 128, 128)[..., 0]
    moved = np.roll(small, 4, axis=1)
    found = measure(small, moved)
    assert found.flow == pytest.approx(4 / np.hypot(128, 128), rel=0.1)
    assert found.moving > 0.9
    assert measure(small, small) == (pytest.approx(0, abs=1e-6), 0, 0)


def test_a_moving_camera_is_dynamic_and_a_moving_thing_static():
    frames = moving_square(24)
    thing = measure(grey(frames[0]), grey(frames[10]))
    wide = textured(0, 96, 160)
    camera = measure(grey(wide[:, :128]), grey(wide[:, 6:134]))
    assert context_tags(thing, PairSettings()) == ("static scenario",)
    assert context_tags(camera, PairSettings()) == ("dynamic scenario",)


def test_pairs_keep_to_the_gaps():
    settings = PairSettings(per_shot=50, min_gap=0.5, max_gap=1.0)
    rng = np.random.default_rng(0)
    dropped = collections.Counter()
    found = choose_pairs(shot_of(moving_square(24)), settings, rng, dropped=dropped)
    gaps = [(pair.later - pair.earlier) / 8 for pair in found]
    assert min(gaps) == 0.5 and max(gaps) == 1.0
    assert len(set(found)) == len(found) == 50


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (np.repeat(textured(0)[None], 24, 0), "no motion"),
        (np.zeros((24, 96, 128, 3), np.uint8), "no contrast"),
        (
            np.repeat(np.linspace(0, 255, 128).astype(np.uint8)[None, None, :, None], 24, 0)
            .repeat(96, 1)
            .repeat(3, 3),
            "blurred",
        ),
        (np.stack([textured(t) for t in range(24)]), "too different"),
    ],
)
def test_pairs_that_are_left_out_are_counted(frames, reason):
    dropped = collections.Counter()
    settings = PairSettings(max_difference=0.1)
    assert not choose_pairs(shot_of(frames), settings, np.random.default_rng(0), dropped=dropped)
    assert dict(dropped) == {reason: 8}


def test_a_shot_shorter_than_the_gap():
    with pytest.raises(ClipError, match="no gap that fits") as error:
        choose_pairs(
            shot_of(moving_square(3)),
            PairSettings(),
            np.random.default_rng(0),
            dropped=collections.Counter(),
        )
    assert error.value.reason == "too short"


# ----------------------------------------------------------------------------------------- records


def example_pair(**changes):
    rng = np.random.default_rng(0)
    values = {
        "frames": moving_square(2),
        "masks": rng.integers(0, 3, (2, 96, 128)).astype(np.uint8),
        "names": {1: "une balle", 2: "猫"},
        "caption": "кот идёт",
        "clip": "a/b.mp4",
        "times": (0.5, 1.25),
        "tags": ("realistic style", "static scenario"),
        "flow": 0.01,
        "difference": 0.02,
        "depth": rng.uniform(1, 9, (2, 96, 128)).astype(np.float16),
    }
    return Pair(**(values | changes))


@pytest.mark.parametrize("lossless", [True, False])
def test_a_record_gives_the_pair_back(lossless):
    pair = example_pair()
    found = decode_pair(encode_pair(pair, lossless=lossless))
    for field in dataclasses.fields(Pair):
        value, expected = getattr(found, field.name), getattr(pair, field.name)
        if field.name == "frames" and not lossless:
            assert np.abs(value.astype(int) - expected).mean() < 3
        elif isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(value, expected)
        else:
            assert value == (list(expected) if field.name == "tags" else expected)


def test_records_of_another_kind_are_refused(monkeypatch):
    with pytest.raises(pairs.PairError, match="not a pair of schema 'pair/1'"):
        decode_pair(b"nothing")
    with pytest.raises(pairs.PairError, match="another size than its frames"):
        decode_pair(encode_pair(example_pair(masks=np.zeros((2, 48, 64), np.uint8))))
    monkeypatch.setattr(pairs, "SCHEMA", "pair/0")
    blob = encode_pair(example_pair())
    monkeypatch.undo()
    with pytest.raises(pairs.PairError, match=r"schema 'pair/0', not 'pair/1'.*launch\.curate"):
        decode_pair(blob)


# --------------------------------------------------------------------------------------------- job


def test_a_job_writes_pairs_of_all_clips(clips, tmp_path):
    manifest = run(clips, tmp_path / "out", tracker=LeftHalf())
    found = read_all(tmp_path / "out")
    assert manifest["records"] == len(found) == 6 and manifest["clips"] == 3
    assert manifest["skipped"] == []
    assert {pair.clip for pair in found} == {"0.mp4", "1.mp4", "2.mp4"}
    for pair in found:
        assert pair.caption == f"le carré {pair.clip[0]} avance, 四角"
        assert 0.5 <= pair.times[1] - pair.times[0] <= 3.0
        assert pair.tags == ["realistic style", "static scenario"]
        assert pair.names == {1: "the left"}  # one pixel is too small
        np.testing.assert_array_equal(np.unique(pair.masks), [0, 1])
        # the frames are those of the times, and in this order
        truth = moving_square(24, int(pair.clip[0]))
        for frame, time in zip(pair.frames, pair.times, strict=True):
            errors = [np.abs(t.astype(int) - frame).mean() for t in truth]
            assert int(np.argmin(errors)) == round(8 * time)
    assert manifest["dropped"]["small or lost mask"] == 6


def test_bad_and_same_clips_are_counted_and_named(clips, tmp_path):
    (clips / "empty.mp4").write_bytes(b"")
    (clips / "noise.mp4").write_bytes(b"x" * 4000)
    (clips / "same.mp4").write_bytes((clips / "1.mp4").read_bytes())
    write_sound(clips / "sound.mkv")
    (clips / "json.mp4").write_bytes((clips / "2.mp4").read_bytes() + b"\0" * 64)
    (clips / "json.json").write_text("{broken")
    write_video(clips / "deep" / "silent.mp4", moving_square(24, 7))  # no caption
    manifest = run(clips, tmp_path / "out")
    assert manifest["records"] == 6 and manifest["clips"] == 9
    assert {c["clip"]: c["reason"] for c in manifest["skipped"]} == {
        "empty.mp4": "empty",
        "noise.mp4": "corrupt",
        "same.mp4": "duplicate",
        "sound.mkv": "no video",
        "json.mp4": "bad sidecar",
    }
    assert "1.mp4" in next(c["message"] for c in manifest["skipped"] if c["clip"] == "same.mp4")
    assert manifest["skipped_by_reason"] == {
        reason: 1 for reason in ("empty", "corrupt", "duplicate", "no video", "bad sidecar")
    }
    assert manifest["dropped"] == {"no caption": 1}
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert written == manifest


def test_a_job_can_stop_at_a_bad_clip(clips, tmp_path):
    (clips / "noise.mp4").write_bytes(b"x" * 4000)
    with pytest.raises(job.StoppedError, match=r"corrupt: .*noise\.mp4"):
        run(clips, tmp_path / "out", stop_at_bad=True)
    (clips / "noise.mp4").unlink()
    assert run(clips, tmp_path / "out", stop_at_bad=True)["records"] == 6


def bytes_of(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_a_job_killed_half_way_ends_with_the_same_records(clips, tmp_path, monkeypatch):
    run(clips, tmp_path / "whole")
    out, calls = tmp_path / "out", []
    curate_clip = job.curate_clip

    def killed(*args, **kwargs):
        calls.append(args[1])
        if len(calls) == 2:
            raise MemoryError("killed")
        return curate_clip(*args, **kwargs)

    monkeypatch.setattr(job, "curate_clip", killed)
    with pytest.raises(Exception, match="killed"):
        run(clips, out)
    monkeypatch.undo()
    before = {name for name in bytes_of(out) if name.endswith(".array_record")}
    run(clips, out)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert len(before) < len({n for n in bytes_of(out) if n.endswith(".array_record")})


def test_finished_shards_are_not_curated_again(clips, tmp_path, monkeypatch):
    run(clips, tmp_path / "out")
    before = bytes_of(tmp_path / "out")
    monkeypatch.setattr(job, "curate_clip", lambda *a, **k: pytest.fail("curated again"))
    run(clips, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == before


def test_the_order_of_work_does_not_matter(clips, tmp_path):
    run(clips, tmp_path / "a")

    class Reversed(VideoClips):
        def names(self):
            return super().names()[::-1]

    source = Reversed(clips, settings=ReadSettings())
    job.run_job(
        job.Curation(source=source, describer=Captions()), tmp_path / "b", settings={}, num_shards=3
    )
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_other_settings_need_another_folder(clips, tmp_path):
    run(clips, tmp_path / "out", settings={"seed": 0})
    with pytest.raises(ConfigError, match=r"was curated with other settings \(settings was"):
        run(clips, tmp_path / "out", settings={"seed": 1})
    with pytest.raises(ConfigError, match="shards was 3, now 4"):
        run(clips, tmp_path / "out", settings={"seed": 0}, num_shards=4)


def test_the_seed_decides_the_pairs(clips, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        run(clips, tmp_path / name, settings={"seed": seed}, seed=seed)
    times = [[pair.times for pair in read_all(tmp_path / name)] for name in "ab"]
    assert times[0] != times[1]


def test_pairs_with_too_few_things_are_left_out(clips, tmp_path):
    manifest = run(clips, tmp_path / "out", tracker=LeftHalf(), min_things=2)
    assert manifest["records"] == 0 and manifest["dropped"]["too few things"] == 6
    assert not list(pathlib.Path(tmp_path / "out").glob("*.array_record"))
