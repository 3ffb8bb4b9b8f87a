"""Makes the subjects data set: pictures of named things with exact masks, from emoji.

    python -m launch.subjects --emoji FOLDER --names FOLDER --out data/subjects-32 --size 32

The folders are the unpacked npm packages @lobehub/fluent-emoji-3d and unicode-emoji-json;
`launch/subjects.sh` fetches them and runs this. A stopped run continues with the same command.
Scenes are drawn from the records when they are read.
"""

from absl import flags

from launch import command
from unidiff_jax.paths import written_whole


def define_flags() -> None:
    from data_pipelines.subjects.package import GROUPS

    flags.DEFINE_string("emoji", None, "Unpacked @lobehub/fluent-emoji-3d.", required=True)
    flags.DEFINE_string("names", None, "Unpacked unicode-emoji-json.", required=True)
    flags.DEFINE_string("out", "data/subjects-32", "Folder for the record files.")
    flags.DEFINE_integer(
        "size", 32, "Pixels a side of the pictures to be made.", lower_bound=8, upper_bound=256
    )
    flags.DEFINE_list("groups", ",".join(GROUPS), "Unicode's groups that are kept.")
    flags.DEFINE_integer("seed", 0, "Seed of the splits.", lower_bound=0)
    flags.DEFINE_float(
        "share", 0.1, "Of the subjects, in validation and in test.", lower_bound=0, upper_bound=0.4
    )
    flags.DEFINE_integer("shards", 2, "Record files a split.", lower_bound=1)
    flags.DEFINE_string("sheet", None, "PNG for a contact sheet of items of every task.")


def main(argv: list[str]) -> None:
    del argv
    from data_pipelines.subjects.records import Settings, render_subjects

    command.quiet_libraries()
    values = flags.FLAGS
    settings = Settings(
        size=values.size,
        groups=tuple(values.groups),
        seed=values.seed,
        share=values.share,
        shards=values.shards,
    )
    counts = render_subjects(values.out, emoji=values.emoji, names=values.names, settings=settings)
    print(f"{values.out}: {', '.join(f'{n} {split}' for split, n in counts.items())} subjects")
    if values.sheet:
        from data_pipelines.subjects.sheet import contact_sheet

        with written_whole(values.sheet) as file:
            contact_sheet(values.out, size=values.size).save(file)
        print(f"items: {values.sheet}")


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
