"""Faces in pictures: found by a YuNet file, turned upright, told apart by an identity network.

Both networks are the user's files. `face-detector.onnx` is a YuNet (OpenCV's zoo, MIT licence),
which OpenCV runs; `face.onnx` is any network of `identity.OnnxIdentity`.
"""

from typing import Protocol

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from unidiff_jax.config import ConfigError
from unidiff_jax.paths import AnyPath, as_path

SIDE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
     [70.7299, 92.2041]]
)  # fmt: skip
"""Where eyes, nose and corners of the mouth lie in a face of `SIDE` pixels (ArcFace), from left to
right as the picture shows them."""

MIN_SCORE = 0.6

Picture = UInt8[np.ndarray, "h w 3"]


class FaceFinder(Protocol):
    """Finds the five points of the largest face of a picture; None where there is none."""

    def __call__(self, picture: Picture) -> Float[np.ndarray, "5 2"] | None: ...


class YuNet:
    """OpenCV's face detector.

    Example:
      >>> YuNet("weights/face-detector.onnx")(picture)  # five points or None
    """

    def __init__(self, path: AnyPath):
        """Loads the network.

        Raises:
          ConfigError: no such file, or no YuNet.
        """
        path = as_path(path)
        if not path.is_file():
            raise ConfigError(f"no such file: {path}")
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), MIN_SCORE)
        except cv2.error as error:
            raise ConfigError(f"{path} is no YuNet that OpenCV reads: {error}") from None

    def __call__(self, picture: Picture) -> Float[np.ndarray, "5 2"] | None:
        self._net.setInputSize(picture.shape[1::-1])
        _, faces = self._net.detect(np.ascontiguousarray(picture[..., ::-1]))
        if faces is None or not len(faces):
            return None
        largest = faces[np.argmax(faces[:, 2] * faces[:, 3])]
        points = largest[4:14].reshape(5, 2).astype(np.float64)
        # the template's order: eyes, nose, mouth, each pair from left to right
        return np.concatenate([_sorted(points[:2]), points[2:3], _sorted(points[3:])])


def _sorted(pair: np.ndarray) -> np.ndarray:
    return pair[np.argsort(pair[:, 0])]


def align_face(picture: Picture, points: Float[np.ndarray, "5 2"]) -> Picture:
    """The face at `SIDE` pixels, by the similarity transform that brings the points nearest to the
    template.
    """
    matrix, _ = cv2.estimateAffinePartial2D(points, TEMPLATE, method=cv2.LMEDS)
    if matrix is None:
        matrix = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return cv2.warpAffine(picture, matrix, (SIDE, SIDE))
