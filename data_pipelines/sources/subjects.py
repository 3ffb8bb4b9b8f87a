"""Several pictures of one subject or person: a folder a subject.

    people/anna_k/01.jpg  01.txt  02.png  02.txt  name.txt

Each picture may have a caption of the same stem. `name.txt` is the subject's name; without it the
folder's name is read as words.
"""

from typing import Any

import numpy as np
from etils import epath

from data_pipelines.sources import files
from data_pipelines.sources.base import (
    SampleError,
    SourceError,
    check_bounds,
    check_index,
    draw_some,
    read_picture,
)


class SubjectSource:
    """Samples of different pictures of the same subject.

    | field | what |
    |---|---|
    | `views` | the pictures; the first one is the target |
    | `captions` | `[[img0]] caption [[img1]] caption ...`, numbered as the views (OneDiffusion) |
    | `name` | what the subject is called |
    """

    fields = ("views", "captions", "name")

    def __init__(self, folder: str, *, num_views: int | tuple[int, int] = (2, 4)):
        """Lists the subjects, not their pictures.

        Args:
          folder: holds one folder a subject.
          num_views: how many pictures, or the least and the largest number; a subject with fewer
            than the largest gives at most all that it has.

        Raises:
          SourceError: no subjects.
          ValueError: not 1 <= least <= largest.
        """
        self._num_views = check_bounds(num_views)
        self._folder = epath.Path(folder).expanduser()
        self._subjects = files.list_folders(self._folder)
        if not self._subjects:
            raise SourceError(f"{folder} holds no folders: one folder a subject")

    def __len__(self) -> int:
        return len(self._subjects)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Pictures of one subject; see `RawSource.sample`."""
        check_index(index, len(self))
        folder = self._folder / self._subjects[index]
        try:
            names = files.list_names(folder)
        except SourceError as error:
            raise SampleError(str(error)) from None
        pictures = [name for name in names if name.lower().endswith(files.PICTURES)]
        chosen = draw_some(len(pictures), self._num_views, rng, name=f"{folder}: pictures")
        views, captions = [], []
        for number, place in enumerate(chosen):
            path = files.inside(folder, pictures[place])
            views.append(read_picture(files.read_bytes(path), name=str(path)))
            side = f"{path.stem}.txt"
            caption = files.read_text(files.inside(folder, side)) if side in names else ""
            captions.append(f"[[img{number}]] {caption}".rstrip())
        named = "name.txt" in names
        name = files.read_text(files.inside(folder, "name.txt")) if named else ""
        name = name or " ".join(folder.name.replace("_", " ").replace("-", " ").split())
        return {"views": views, "captions": " ".join(captions), "name": name}
